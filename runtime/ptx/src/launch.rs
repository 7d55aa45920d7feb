//! Modules, what their kernels take, and launching them.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::block::{Machine, dynamic_start};
use crate::bytes::Bytes;
use crate::link::{Layout, Symbol, layout, link};
use crate::parse::parse;
use crate::program::{Initial, Program};
use crate::shared::Shared;
use crate::space::Space;
use crate::{Error, Memory};

/// PTX, read and ready to run.
pub struct Module {
    /// Tells the variables of this module from those of others.
    number: u64,
    target: u32,
    kernels: Vec<(Kernel, Program)>,
    layout: Layout,
    constants: Bytes,
}

/// A kernel as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// The name to launch it by.
    pub name: String,
    /// What the parameter block holds, in order.
    pub params: Vec<Param>,
    /// Shared memory of each block, without what a launch adds.
    pub shared_bytes: u32,
    /// `.maxntid`: the most threads of a block.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqntid`: the threads every block must have.
    pub required_threads: Option<[u32; 3]>,
}

/// One parameter in the parameter block; all in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Param {
    /// From the start of the block.
    pub offset: u32,
    /// How long it is.
    pub size: u32,
    /// What its offset is a multiple of.
    pub align: u32,
}

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The name of the kernel.
    pub kernel: &'a str,
    /// How many blocks.
    pub grid: [u32; 3],
    /// How many threads a block has.
    pub block: [u32; 3],
    /// Shared memory of each block, besides what the kernel declares.
    pub shared_bytes: u32,
    /// The parameter block.
    pub args: &'a [u8],
}

impl Module {
    /// Reads PTX. An instruction, modifier or directive that is not known is an error here, not when it is reached.
    pub fn parse(text: &str) -> Result<Module, Error> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let source = parse(text)?;
        let layout = layout(&source);
        let mut kernels = Vec::new();
        for function in source.functions.iter().filter(|function| function.entry && function.body.is_some()) {
            let program = link(&source, &layout, function)?;
            let mut params = Vec::new();
            let mut end = 0u32;
            for param in &function.params {
                let (size, align) = (param.size.unwrap_or(0), param.align.max(1));
                let offset = end.next_multiple_of(align);
                params.push(Param { offset, size, align });
                end = offset + size;
            }
            let kernel = Kernel {
                name: function.name.clone(),
                params,
                shared_bytes: program.shared_bytes,
                max_threads: function.max_threads,
                required_threads: function.required_threads,
            };
            kernels.push((kernel, program));
        }
        let mut constants = Bytes::new(layout.constants.len());
        constants.write(0, &layout.constants);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Module { number, target: source.target, kernels, layout, constants })
    }

    /// Its kernels, in the order of the text.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.iter().map(|(kernel, _)| kernel)
    }

    /// The address of a `.global` variable in that memory.
    pub fn variable(&self, memory: &mut Memory, name: &str) -> Option<u64> {
        match self.layout.symbols.get(name)? {
            Symbol::Memory(Space::Global, Initial::Global(offset)) => {
                let offset = *offset;
                Some(self.globals(memory).ok()? + offset)
            }
            _ => None,
        }
    }

    /// Where the variables of this module stand in that memory; they are put there once.
    fn globals(&self, memory: &mut Memory) -> Result<u64, Error> {
        if self.layout.globals.is_empty() {
            return Ok(0);
        }
        if let Some(&address) = memory.variables.get(&self.number) {
            return Ok(address);
        }
        let address = memory.alloc(self.layout.globals.len());
        memory.write(address, &self.layout.globals)?;
        memory.variables.insert(self.number, address);
        Ok(address)
    }

    /// Runs a kernel to its end.
    pub fn launch(&self, memory: &mut Memory, launch: &Launch) -> Result<(), Error> {
        let refuse = |reason: String| Err(Error::Launch { kernel: launch.kernel.to_owned(), reason });
        let Some((kernel, program)) = self.kernels.iter().find(|(kernel, _)| kernel.name == launch.kernel) else {
            return refuse("the module has no such kernel".to_owned());
        };
        if let Some(reason) = refused(kernel, program, launch, self.target) {
            return refuse(reason);
        }
        let globals = self.globals(memory)?;
        let mut params = Bytes::new(launch.args.len());
        params.write(0, launch.args);
        let shared = Shared::new((dynamic_start(program) + launch.shared_bytes) as usize);
        Machine {
            program,
            memory,
            shared,
            constants: &self.constants,
            params,
            globals,
            kernel: &kernel.name,
            grid: launch.grid,
            threads: launch.block,
            block: [0; 3],
            dynamic_bytes: launch.shared_bytes,
            barriers: Vec::new(),
        }
        .run()
    }
}

/// Shared memory that a block may have at most, by the compute capability ("Technical Specifications per Compute
/// Capability" in the CUDA C++ Programming Guide).
fn shared_limit(target: u32) -> u32 {
    let kib = match target {
        ..75 => 48,
        75 => 64,
        80 | 87 => 163,
        86 | 89 | 120.. => 99,
        _ => 227,
    };
    kib * 1024
}

/// Why a driver would refuse the launch.
fn refused(kernel: &Kernel, program: &Program, launch: &Launch, target: u32) -> Option<String> {
    let Launch { grid, block, shared_bytes, args, .. } = launch;
    let [x, y, z] = *block;
    let threads = u64::from(x) * u64::from(y) * u64::from(z);
    if threads == 0 || threads > 1024 || x > 1024 || y > 1024 || z > 64 {
        return Some(format!("a block of {block:?} threads: 1 to 1024, at most 64 along z, are possible"));
    }
    if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
        return Some(format!("a grid of {grid:?} blocks: 1 to 2147483647 by 65535 by 65535 are possible"));
    }
    if let Some(most) = kernel.max_threads
        && threads > most.iter().map(|&count| u64::from(count)).product()
    {
        return Some(format!("a block of {block:?} threads: it was compiled for at most {most:?}"));
    }
    if let Some(required) = kernel.required_threads
        && required != *block
    {
        return Some(format!("a block of {block:?} threads: it was compiled for {required:?}"));
    }
    let shared = u64::from(dynamic_start(program)) + u64::from(*shared_bytes);
    if shared > u64::from(shared_limit(target)) {
        return Some(format!("{shared} bytes of shared memory: sm_{target} has {}", shared_limit(target)));
    }
    let wanted = program.param_bytes as usize;
    if args.len() < wanted || args.len() >= wanted + 16 {
        return Some(format!("{} bytes of parameters: it takes {wanted}", args.len()));
    }
    None
}
