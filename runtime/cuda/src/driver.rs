//! A real device: the driver's C interface, found when it is needed.
//!
//! `cudarc` finds the library and has its types. Functions are looked up here, each once and with its result as a plain
//! number: cudarc's own wrappers panic where a function is missing, and their results are a Rust enumeration that a newer
//! driver's code need not be in. What must hold: every result is looked at, and says which step it was; work goes to one
//! stream, in order, and recordings are made on another, so that nobody else's work gets into them.

#![allow(unsafe_code, reason = "the driver's C interface")]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUmodule, CUstream,
};

use crate::device::{Device, Facts, Fault, Recording};
use crate::launch::Launch;
use crate::{Reason, kernels};

const OUT_OF_MEMORY: u32 = 2;
const NO_DEVICE: u32 = 100;
const JIT_COMPILER_NOT_FOUND: u32 = 221;
const MAJOR: c_int = 75;
const MINOR: c_int = 76;
/// `CU_DEVICE_ATTRIBUTE_PAGEABLE_MEMORY_ACCESS`.
const READS_HOST_MEMORY: c_int = 88;
/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: what other threads do meanwhile is their affair.
const THREAD_LOCAL: c_uint = 1;
/// `CU_STREAM_NON_BLOCKING`: no waiting for the legacy default stream.
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const WITHOUT_TIMING: c_uint = 2;
/// Bytes of each piece in which large uploads go, and how many are on their way at once.
const STAGE_BYTES: usize = 512 << 10;
const STAGES: usize = 2;
const LOG_BUFFER: c_uint = 5;
const LOG_BUFFER_BYTES: c_uint = 6;
const LOG_BYTES: usize = 16 << 10;
/// `CU_LAUNCH_PARAM_BUFFER_POINTER`, `_SIZE` and `_END`.
const PARAMETERS: *mut c_void = std::ptr::without_provenance_mut(1);
const PARAMETERS_BYTES: *mut c_void = std::ptr::without_provenance_mut(2);
const PARAMETERS_END: *mut c_void = null_mut();

/// Defines the table of the driver's functions that are used, and how it is filled.
macro_rules! interface {
    ($($field:ident = $name:literal ($($kind:ty),*);)*) => {
        struct Interface { $($field: unsafe extern "C" fn($($kind),*) -> u32,)* }

        impl Interface {
            fn find() -> Result<Self, Reason> {
                // SAFETY: opening the library runs its initialisers, which is what it is opened for.
                if !unsafe { sys::is_culib_present() } {
                    return Err(Reason::NoDriver);
                }
                Ok(Self {
                    $($field: {
                        // SAFETY: as above; the library is there, so that this does not panic.
                        let library = unsafe { sys::culib() };
                        // SAFETY: the types are those of cuda.h, of CUDA 11.4 and every version since.
                        match unsafe { library.get::<unsafe extern "C" fn($($kind),*) -> u32>($name.as_bytes()) } {
                            Ok(symbol) => *symbol,
                            Err(_) => return Err(Reason::Fault {
                                name: "the NVIDIA driver".into(),
                                fault: Fault::Failed {
                                    step: concat!("finding ", $name, " in libcuda.so.1").into(),
                                    code: "it is not there".into(),
                                },
                            }),
                        }
                    },)*
                })
            }
        }
    };
}

interface! {
    driver_version = "cuDriverGetVersion" (*mut c_int);
    init = "cuInit" (c_uint);
    error_name = "cuGetErrorName" (u32, *mut *const c_char);
    device_count = "cuDeviceGetCount" (*mut c_int);
    device_get = "cuDeviceGet" (*mut CUdevice, c_int);
    device_name = "cuDeviceGetName" (*mut c_char, c_int, CUdevice);
    device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, CUdevice);
    context_retain = "cuDevicePrimaryCtxRetain" (*mut CUcontext, CUdevice);
    context_release = "cuDevicePrimaryCtxRelease_v2" (CUdevice);
    context_enter = "cuCtxSetCurrent" (CUcontext);
    stream_create = "cuStreamCreate" (*mut CUstream, c_uint);
    stream_destroy = "cuStreamDestroy_v2" (CUstream);
    stream_wait = "cuStreamSynchronize" (CUstream);
    memory_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    memory_allocate = "cuMemAlloc_v2" (*mut CUdeviceptr, usize);
    memory_free = "cuMemFree_v2" (CUdeviceptr);
    memory_set = "cuMemsetD8Async" (CUdeviceptr, u8, usize, CUstream);
    copy_in = "cuMemcpyHtoDAsync_v2" (CUdeviceptr, *const c_void, usize, CUstream);
    copy_out = "cuMemcpyDtoHAsync_v2" (*mut c_void, CUdeviceptr, usize, CUstream);
    host_allocate = "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost" (*mut c_void);
    event_create = "cuEventCreate" (*mut CUevent, c_uint);
    event_record = "cuEventRecord" (CUevent, CUstream);
    event_wait = "cuEventSynchronize" (CUevent);
    event_destroy = "cuEventDestroy_v2" (CUevent);
    module_load = "cuModuleLoadDataEx" (*mut CUmodule, *const c_void, c_uint, *mut c_uint, *mut *mut c_void);
    module_unload = "cuModuleUnload" (CUmodule);
    module_function = "cuModuleGetFunction" (*mut CUfunction, CUmodule, *const c_char);
    launch = "cuLaunchKernel" (CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void);
    capture_begin = "cuStreamBeginCapture_v2" (CUstream, c_uint);
    capture_end = "cuStreamEndCapture" (CUstream, *mut CUgraph);
    graph_prepare = "cuGraphInstantiateWithFlags" (*mut CUgraphExec, CUgraph, u64);
    graph_launch = "cuGraphLaunch" (CUgraphExec, CUstream);
    graph_exec_destroy = "cuGraphExecDestroy" (CUgraphExec);
    graph_destroy = "cuGraphDestroy" (CUgraph);
}

impl Interface {
    /// The name of a result.
    fn name(&self, code: u32) -> String {
        let mut text = std::ptr::null();
        // SAFETY: the pointer is set to a string that lives as long as the library, or not at all.
        unsafe {
            if (self.error_name)(code, &mut text) == 0 && !text.is_null() {
                return CStr::from_ptr(text).to_string_lossy().into_owned();
            }
        }
        format!("error {code}")
    }

    fn check(&self, code: u32, step: &str) -> Result<(), Fault> {
        if code == 0 { Ok(()) } else { Err(Fault::Failed { step: step.into(), code: self.name(code) }) }
    }
}

/// The first device.
pub(crate) struct Driver {
    api: Interface,
    facts: Facts,
    device: CUdevice,
    context: CUcontext,
    /// Whether it reads memory of the host that is not pinned by itself, so that a copy may go on after it was asked for.
    reads_host_memory: bool,
    /// Where work goes.
    stream: CUstream,
    /// Where recordings are made; held while one is.
    recorder: Mutex<CUstream>,
    modules: Mutex<Vec<CUmodule>>,
    functions: Mutex<HashMap<String, CUfunction>>,
    recordings: Mutex<Vec<Option<CUgraphExec>>>,
    /// What large uploads go through; held while one does.
    stages: Mutex<Stages>,
}

/// Pinned memory of the host, from which a device copies by itself, and what tells that it has. Pieces take turns.
#[derive(Default)]
struct Stages {
    all: Vec<(*mut c_void, CUevent)>,
    next: usize,
    /// The driver had none: uploads go without.
    refused: bool,
}

// SAFETY: handles of the driver may be used from any thread whose current context is theirs, which `enter` sees to.
unsafe impl Send for Driver {}
// SAFETY: as above; the driver's functions may be called by several threads at once.
unsafe impl Sync for Driver {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Driver {
    pub(crate) fn open() -> Result<Self, Reason> {
        let api = Interface::find()?;
        let fail = |name: &str, fault: Fault| Reason::Fault { name: name.into(), fault };
        let on_driver = |fault: Fault| fail("the NVIDIA driver", fault);
        let mut version = 0;
        // SAFETY (this and those below): the functions have the types of cuda.h, and pointers are to live locals.
        api.check(unsafe { (api.driver_version)(&mut version) }, "asking for the driver's version")
            .map_err(on_driver)?;
        let driver = (version as u32 / 1000, version as u32 % 1000 / 10);
        let (needs, linux) = kernels::DRIVER_MIN;
        if driver < needs {
            return Err(Reason::OldDriver { has: driver, needs, linux });
        }
        // SAFETY: see above.
        let code = unsafe { (api.init)(0) };
        if code == NO_DEVICE {
            return Err(Reason::NoDevice(String::new()));
        }
        api.check(code, "starting the driver").map_err(on_driver)?;
        let (mut count, mut device) = (0, 0);
        // SAFETY: see above.
        api.check(unsafe { (api.device_count)(&mut count) }, "counting devices").map_err(on_driver)?;
        if count == 0 {
            return Err(Reason::NoDevice("it counts none".into()));
        }
        // SAFETY: see above.
        api.check(unsafe { (api.device_get)(&mut device, 0) }, "opening device 0").map_err(on_driver)?;
        let mut name = [0 as c_char; 256];
        // SAFETY: see above; the last byte stays zero.
        api.check(unsafe { (api.device_name)(name.as_mut_ptr(), 255, device) }, "naming device 0")
            .map_err(on_driver)?;
        // SAFETY: the name ends within its array.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let on_device = |fault: Fault| fail(&name, fault);
        let attribute = |which: c_int| {
            let mut value = 0;
            // SAFETY: see above.
            let code = unsafe { (api.device_attribute)(&mut value, which, device) };
            api.check(code, "asking what it can do").map(|()| value as u32).map_err(on_device)
        };
        let capability = (attribute(MAJOR)?, attribute(MINOR)?);
        let reads_host_memory = attribute(READS_HOST_MEMORY)? != 0;
        let mut context = null_mut();
        // SAFETY: see above.
        api.check(unsafe { (api.context_retain)(&mut context, device) }, "opening a context").map_err(on_device)?;
        let facts = Facts { name: name.clone(), capability, driver };
        // From here on dropping it gives back what was taken.
        let mut opened = Self {
            api,
            facts,
            device,
            context,
            reads_host_memory,
            stream: null_mut(),
            recorder: Mutex::new(null_mut()),
            modules: Mutex::default(),
            functions: Mutex::default(),
            recordings: Mutex::default(),
            stages: Mutex::default(),
        };
        opened.enter().map_err(on_device)?;
        opened.stream = opened.new_stream().map_err(on_device)?;
        *lock(&opened.recorder) = opened.new_stream().map_err(on_device)?;
        Ok(opened)
    }

    fn new_stream(&self) -> Result<CUstream, Fault> {
        let mut stream = null_mut();
        // SAFETY: the pointer is to a live local.
        self.api.check(unsafe { (self.api.stream_create)(&mut stream, NON_BLOCKING) }, "making a stream")?;
        Ok(stream)
    }

    /// Makes the context this thread's.
    fn enter(&self) -> Result<(), Fault> {
        // SAFETY: the context is retained until this is dropped.
        self.api.check(unsafe { (self.api.context_enter)(self.context) }, "entering the context")
    }

    /// Uploads through the stages: a piece is copied aside while the device copies the one before.
    fn upload_staged(&self, stages: &mut Stages, to: u64, bytes: &[u8]) -> Result<(), Fault> {
        let step = || format!("copying {} bytes to the device", bytes.len());
        for (index, piece) in bytes.chunks(STAGE_BYTES).enumerate() {
            let (room, event) = stages.all[stages.next];
            stages.next = (stages.next + 1) % STAGES;
            let to = to + (index * STAGE_BYTES) as u64;
            // SAFETY: once the event is over (one that was never recorded is) nobody reads the room, which is as long as any
            // piece; the device reads it until the event that is recorded here is over. The caller has allocated the rest.
            let codes = unsafe {
                self.api.check((self.api.event_wait)(event), &step())?;
                std::ptr::copy_nonoverlapping(piece.as_ptr(), room.cast(), piece.len());
                let copied = (self.api.copy_in)(to, room, piece.len(), self.stream);
                // Recorded also when the copy failed: it may have begun.
                [copied, (self.api.event_record)(event, self.stream)]
            };
            codes.into_iter().try_for_each(|code| self.api.check(code, &step()))?;
        }
        Ok(())
    }

    /// Makes the stages, once; false where the driver has no such memory.
    fn make_stages(&self, stages: &mut Stages) -> bool {
        while !stages.refused && stages.all.len() < STAGES {
            let (mut room, mut event) = (null_mut(), null_mut());
            // SAFETY: the pointers are to live locals; what was made is given back by `drop`, or here.
            unsafe {
                if (self.api.host_allocate)(&mut room, STAGE_BYTES, 0) != 0 {
                    stages.refused = true;
                } else if (self.api.event_create)(&mut event, WITHOUT_TIMING) != 0 {
                    (self.api.host_free)(room);
                    stages.refused = true;
                } else {
                    stages.all.push((room, event));
                }
            }
        }
        !stages.refused
    }

    fn launch_on(&self, stream: CUstream, launch: &Launch) -> Result<(), Fault> {
        let step = || format!("launching {}", launch.kernel);
        let function = lock(&self.functions).get(launch.kernel).copied();
        let function = function.ok_or_else(|| Fault::Failed { step: step(), code: "no such kernel".into() })?;
        let mut arguments = launch.arguments.clone();
        let mut bytes = arguments.len();
        let mut extra =
            [PARAMETERS, arguments.as_mut_ptr().cast(), PARAMETERS_BYTES, (&raw mut bytes).cast(), PARAMETERS_END];
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid, launch.block);
        // SAFETY: arguments are a parameter block of that kernel (a test compares them), copied before this returns;
        // that addresses in them are sound is what `launch` sees to.
        let code = unsafe {
            (self.api.launch)(function, gx, gy, gz, bx, by, bz, launch.shared, stream, null_mut(), extra.as_mut_ptr())
        };
        self.api.check(code, &step())
    }
}

impl Device for Driver {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn memory_bytes(&self) -> Result<(u64, u64), Fault> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to live locals.
        self.api.check(unsafe { (self.api.memory_info)(&mut free, &mut total) }, "asking for free memory")?;
        Ok((free as u64, total as u64))
    }

    fn allocate(&self, bytes: u64) -> Result<u64, Fault> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: the pointer is to a live local.
        let code = unsafe { (self.api.memory_allocate)(&mut address, bytes as usize) };
        if code == OUT_OF_MEMORY {
            let (free_bytes, _) = self.memory_bytes().unwrap_or_default();
            return Err(Fault::OutOfMemory { asked_bytes: bytes, free_bytes });
        }
        self.api.check(code, &format!("allocating {bytes} bytes"))?;
        Ok(address)
    }

    unsafe fn release(&self, address: u64) {
        // A device that is lost has nothing to give back.
        let _ = self.enter();
        // SAFETY: the address came from `allocate`; the driver waits for work that uses it.
        unsafe { (self.api.memory_free)(address) };
    }

    unsafe fn clear(&self, address: u64, bytes: u64) -> Result<(), Fault> {
        self.enter()?;
        // SAFETY: the caller has allocated so many bytes there.
        let code = unsafe { (self.api.memory_set)(address, 0, bytes as usize, self.stream) };
        self.api.check(code, &format!("clearing {bytes} bytes"))
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.enter()?;
        if bytes.len() >= STAGE_BYTES {
            let mut stages = lock(&self.stages);
            if self.make_stages(&mut stages) {
                return self.upload_staged(&mut stages, to, bytes);
            }
        }
        // SAFETY: the bytes are read before this returns: what is not pinned is copied aside at once, but for devices that
        // read it by themselves (Grace Hopper, and others with HMM), and those are waited for, also when the copy failed.
        // The caller has allocated the rest.
        let (copied, waited) = unsafe {
            let copied = (self.api.copy_in)(to, bytes.as_ptr().cast(), bytes.len(), self.stream);
            (copied, if self.reads_host_memory { (self.api.stream_wait)(self.stream) } else { 0 })
        };
        self.api.check(copied, &format!("copying {} bytes to the device", bytes.len()))?;
        self.api.check(waited, "waiting for the device")
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        self.enter()?;
        let length = bytes.len();
        // SAFETY: the bytes are there until the wait below is over, also when the copy failed.
        let (copied, waited) = unsafe {
            let copied = (self.api.copy_out)(bytes.as_mut_ptr().cast(), from, length, self.stream);
            (copied, (self.api.stream_wait)(self.stream))
        };
        self.api.check(copied, &format!("copying {length} bytes from the device"))?;
        self.api.check(waited, "waiting for the device")
    }

    fn load(&self, ptx: &str) -> Result<(), Fault> {
        self.enter()?;
        let text = CString::new(ptx)
            .map_err(|_| Fault::Refused { code: "malformed".into(), log: "the text holds a zero byte".into() })?;
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [LOG_BUFFER, LOG_BUFFER_BYTES];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), LOG_BYTES as *mut c_void];
        let mut module = null_mut();
        // SAFETY: the text ends with a zero; the log is as long as is said.
        let code = unsafe {
            let (options, values) = (options.as_mut_ptr(), values.as_mut_ptr());
            (self.api.module_load)(&mut module, text.as_ptr().cast(), 2, options, values)
        };
        if code == OUT_OF_MEMORY {
            let (free_bytes, _) = self.memory_bytes().unwrap_or_default();
            return Err(Fault::OutOfMemory { asked_bytes: ptx.len() as u64, free_bytes });
        }
        if code != 0 {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(LOG_BYTES);
            let mut said = String::from_utf8_lossy(&log[..end]).trim().to_owned();
            if code == JIT_COMPILER_NOT_FOUND {
                said = "its compiler, libnvidia-ptxjitcompiler.so.1, must be beside libcuda.so.1".into();
            } else if said.is_empty() {
                said = "it did not say why".into();
            }
            return Err(Fault::Refused { code: self.api.name(code), log: said });
        }
        lock(&self.modules).push(module);
        for name in entries(ptx) {
            let (mut function, symbol) = (null_mut(), CString::new(name).unwrap_or_default());
            // SAFETY: the module was loaded, and the name ends with a zero.
            let code = unsafe { (self.api.module_function)(&mut function, module, symbol.as_ptr()) };
            self.api.check(code, &format!("finding kernel {name}"))?;
            lock(&self.functions).insert(name.to_owned(), function);
        }
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<(), Fault> {
        self.enter()?;
        self.launch_on(self.stream, launch)
    }

    fn record(&self, launches: &[Launch]) -> Result<Option<Recording>, Fault> {
        self.enter()?;
        let recorder = lock(&self.recorder);
        let (mut graph, mut ready) = (null_mut(), null_mut());
        // SAFETY (all of these): handles are live, and pointers are to live locals. What was begun is ended whatever
        // happens between.
        self.api.check(unsafe { (self.api.capture_begin)(*recorder, THREAD_LOCAL) }, "beginning a recording")?;
        let launched = launches.iter().try_for_each(|launch| self.launch_on(*recorder, launch));
        // SAFETY: see above.
        let ended = unsafe { (self.api.capture_end)(*recorder, &mut graph) };
        let prepared = launched.and_then(|()| self.api.check(ended, "ending a recording")).and_then(|()| {
            // SAFETY: see above.
            self.api.check(unsafe { (self.api.graph_prepare)(&mut ready, graph, 0) }, "preparing a recording")
        });
        if !graph.is_null() {
            // SAFETY: see above.
            unsafe { (self.api.graph_destroy)(graph) };
        }
        prepared?;
        let mut recordings = lock(&self.recordings);
        let free = recordings.iter().position(Option::is_none);
        let index = free.unwrap_or(recordings.len());
        if free.is_none() {
            recordings.push(None);
        }
        recordings[index] = Some(ready);
        Ok(Some(index))
    }

    unsafe fn replay(&self, recording: Recording) -> Result<(), Fault> {
        self.enter()?;
        let ready = lock(&self.recordings).get(recording).copied().flatten();
        let unknown = || Fault::Failed { step: "launching a recording".into(), code: "it was forgotten".into() };
        let ready = ready.ok_or_else(unknown)?;
        // SAFETY: the recording is forgotten only by who made it, after its last replay.
        self.api.check(unsafe { (self.api.graph_launch)(ready, self.stream) }, "launching a recording")
    }

    fn forget(&self, recording: Recording) {
        let _ = self.enter();
        if let Some(ready) = lock(&self.recordings).get_mut(recording).and_then(Option::take) {
            // SAFETY: it was taken out, so that nobody uses it any more; the driver waits for what still runs.
            unsafe { (self.api.graph_exec_destroy)(ready) };
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.enter();
        // SAFETY: nobody uses any of these any more. Results are not looked at: a lost device takes all with it.
        unsafe {
            for ready in lock(&self.recordings).drain(..).flatten() {
                (self.api.graph_exec_destroy)(ready);
            }
            for module in lock(&self.modules).drain(..) {
                (self.api.module_unload)(module);
            }
            for (room, event) in lock(&self.stages).all.drain(..) {
                (self.api.event_wait)(event);
                (self.api.event_destroy)(event);
                (self.api.host_free)(room);
            }
            for stream in [self.stream, *lock(&self.recorder)] {
                if !stream.is_null() {
                    (self.api.stream_destroy)(stream);
                }
            }
            (self.api.context_release)(self.device);
        }
    }
}

/// The names of a text's kernels.
pub(crate) fn entries(ptx: &str) -> impl Iterator<Item = &str> {
    ptx.lines().filter_map(|line| line.trim().strip_prefix(".visible .entry ")?.split('(').next())
}
