//! Whole kernels, from their text to what they leave in memory, and what each kind of error says.

mod calls;
mod collectives;
mod copies;
mod divergence;
mod faults;
mod spaces;

use kedge_ptx::{Error, Launch, Memory, Module};

/// A kernel `k` with parameters `in` and `out` (both u64, loaded into `%in` and `%out`, to which four times the flat
/// number of the thread is added in `%mine`), registers of each kind, and this in between. `before` comes first.
fn text(before: &str, body: &str) -> String {
    format!(
        ".version 8.4\n.target sm_80\n.address_size 64\n{before}
.visible .entry k(.param .u64 k_in, .param .u64 k_out)
{{
.reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .f32 %f<20>; .reg .b64 %rd<20>;
.reg .b32 %t; .reg .b64 %in, %out, %mine, %at;
ld.param.u64 %in, [k_in];
ld.param.u64 %out, [k_out];
mov.u32 %t, %ctaid.x;
mov.u32 %r0, %ntid.x;
mov.u32 %r1, %tid.x;
mad.lo.u32 %t, %t, %r0, %r1;
mul.wide.u32 %at, %t, 4;
add.u64 %mine, %out, %at;
add.u64 %at, %in, %at;
{body}
ret;
}}"
    )
}

struct Run {
    before: &'static str,
    grid: u32,
    block: u32,
    shared: u32,
    input: Vec<u32>,
    /// Words of the output.
    words: usize,
}

impl Default for Run {
    fn default() -> Self {
        Self { before: "", grid: 1, block: 32, shared: 0, input: Vec::new(), words: 32 }
    }
}

impl Run {
    /// Runs the body and reads the output; words never written are zero.
    fn run(&self, body: &str) -> Result<Vec<u32>, Error> {
        let module = Module::parse(&text(self.before, body))?;
        let mut memory = Memory::new();
        let input = memory.alloc(4 * self.input.len());
        let output = memory.alloc(4 * self.words);
        memory.write(input, &self.input.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())?;
        let args: Vec<u8> = [input, output].into_iter().flat_map(u64::to_le_bytes).collect();
        let (grid, block) = ([self.grid, 1, 1], [self.block, 1, 1]);
        module.launch(&mut memory, &Launch { kernel: "k", grid, block, shared_bytes: self.shared, args: &args })?;
        let bytes = memory.peek(output, 4 * self.words)?;
        Ok(bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect())
    }

    /// Runs the body, which must end well.
    #[track_caller]
    fn good(&self, body: &str) -> Vec<u32> {
        self.run(body).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The bodies' last line, mostly: each thread writes `%r9`.
const WRITE: &str = "st.global.u32 [%mine], %r9;";

/// Numbers that look random, the same in every run.
fn numbers(count: usize) -> Vec<u32> {
    let mut state = 7u64;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 32) as u32
        })
        .collect()
}
