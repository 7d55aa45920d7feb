//! What tests run on: a device that interprets the PTX that ships, and a real one where there is one.

#![allow(dead_code, missing_docs, unreachable_pub, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test")]
#![allow(unsafe_code, reason = "the trait asks callers for more than this device does")]

use std::sync::{Arc, Mutex, OnceLock};

use kedge_cuda::device::{self, Recording};
use kedge_cuda::launch::Launch;
use kedge_cuda::{Cuda, Device, Facts, Fault, kernels};
use kedge_ptx::{Memory, Module};

#[derive(Default)]
struct State {
    modules: Vec<Arc<Module>>,
    memory: Memory,
    recordings: Vec<Vec<Launch>>,
    replays: usize,
    downloaded: usize,
}

/// The device. Whatever a kernel must not do (read what nobody wrote, reach beyond a buffer) is a fault.
pub struct Interpreter {
    facts: Facts,
    state: Arc<Mutex<State>>,
}

/// Looks into a device that a backend owns.
pub struct Window(Arc<Mutex<State>>);

impl Window {
    pub fn replays(&self) -> usize {
        self.0.lock().unwrap().replays
    }

    /// Bytes that came back.
    pub fn downloaded(&self) -> usize {
        self.0.lock().unwrap().downloaded
    }
}

/// A backend to test, with its name.
pub struct Tested {
    pub name: String,
    pub backend: Arc<Cuda>,
    /// None of a real device.
    pub window: Option<Window>,
}

/// One for each set of kernels, interpreted and, where there is a device, on it.
pub fn each() -> Vec<Tested> {
    static REAL: OnceLock<Vec<(String, Arc<Cuda>)>> = OnceLock::new();
    let real = REAL.get_or_init(|| {
        let runs = |set: &kernels::Set| device::first().is_ok_and(|device| device.facts().capability >= set.capability);
        let on = |set: kernels::Set| {
            let backend = Cuda::with(device::first().unwrap(), set).unwrap();
            (format!("{}, {}", backend.facts().name, set.name), Arc::new(backend))
        };
        kernels::SETS.into_iter().filter(runs).map(on).collect()
    });
    let mut all: Vec<Tested> = kernels::SETS.map(interpreted).into();
    all.extend(real.iter().map(|(name, backend)| Tested {
        name: name.clone(),
        backend: backend.clone(),
        window: None,
    }));
    all
}

fn interpreted(set: kernels::Set) -> Tested {
    let facts = Facts { name: "interpreter".into(), capability: set.capability, driver: kernels::DRIVER_MIN.0 };
    let state = Arc::<Mutex<State>>::default();
    let device = Box::new(Interpreter { facts, state: state.clone() });
    let backend = Arc::new(Cuda::on(device).unwrap());
    Tested { name: format!("interpreter, {}", set.name), backend, window: Some(Window(state)) }
}

fn failed(step: &str, error: kedge_ptx::Error) -> Fault {
    Fault::Failed { step: step.into(), code: error.to_string() }
}

impl Interpreter {
    fn interpret(&self, launch: &Launch) -> Result<(), Fault> {
        let State { modules, memory, .. } = &mut *self.state.lock().unwrap();
        let module = modules.iter().find(|module| module.kernels().any(|kernel| kernel.name == launch.kernel));
        let args = &launch.arguments;
        let launch = kedge_ptx::Launch {
            kernel: launch.kernel,
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared,
            args,
        };
        module.unwrap().launch(memory, &launch).map_err(|error| failed("launching", error))
    }
}

impl Device for Interpreter {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory_bytes(&self) -> Result<(u64, u64), Fault> {
        Ok((1 << 30, 1 << 30))
    }

    fn allocate(&self, bytes: u64) -> Result<u64, Fault> {
        Ok(self.state.lock().unwrap().memory.alloc(bytes as usize))
    }

    unsafe fn release(&self, address: u64) {
        self.state.lock().unwrap().memory.free(address).unwrap();
    }

    unsafe fn clear(&self, address: u64, bytes: u64) -> Result<(), Fault> {
        let mut state = self.state.lock().unwrap();
        state.memory.write(address, &vec![0; bytes as usize]).map_err(|error| failed("clearing", error))
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.state.lock().unwrap().memory.write(to, bytes).map_err(|error| failed("uploading", error))
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let mut state = self.state.lock().unwrap();
        state.downloaded += bytes.len();
        let read = state.memory.read(from, bytes.len());
        bytes.copy_from_slice(&read.map_err(|error| failed("downloading", error))?);
        Ok(())
    }

    fn load(&self, ptx: &str) -> Result<(), Fault> {
        // Texts are read once for all tests: they are long.
        static READ: Mutex<Vec<(usize, Arc<Module>)>> = Mutex::new(Vec::new());
        let mut read = READ.lock().unwrap();
        let address = ptx.as_ptr() as usize;
        let known = read.iter().find(|(text, _)| *text == address).map(|(_, module)| module.clone());
        let module = known.unwrap_or_else(|| {
            let module = Arc::new(Module::parse(ptx).unwrap());
            read.push((address, module.clone()));
            module
        });
        self.state.lock().unwrap().modules.push(module);
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), Fault> {
        self.interpret(launch)
    }

    fn record(&self, launches: &[Launch]) -> Result<Option<Recording>, Fault> {
        let recordings = &mut self.state.lock().unwrap().recordings;
        recordings.push(launches.to_vec());
        Ok(Some(recordings.len() - 1))
    }

    unsafe fn replay(&self, recording: Recording) -> Result<(), Fault> {
        let launches = {
            let mut state = self.state.lock().unwrap();
            state.replays += 1;
            state.recordings[recording].clone()
        };
        launches.iter().try_for_each(|launch| self.interpret(launch))
    }

    fn forget(&self, recording: Recording) {
        self.state.lock().unwrap().recordings[recording].clear();
    }
}
