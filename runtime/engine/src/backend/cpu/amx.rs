//! Tiles of whole numbers (AMX): what the machine and its kernel allow, the handful of instructions, and products by them.
//!
//! Eight registers hold a tile each: up to sixteen rows of up to 64 bytes. One instruction multiplies a tile of bytes of
//! `x` (rows by inputs) with a tile of weights (four inputs of sixteen outputs in a row: the order in which panels lie, see
//! [`super::quant`]) and adds what comes of it to a tile of 32-bit sums. Stable Rust has no such instructions, so they
//! are written by name. What must hold: all but the instructions is the same code for [`Instructions`] and for the model of
//! them in the tests, which does what Intel's manual says step by step; tiles are released after use, since a thread that
//! holds some has eight KiB more to be saved whenever it is put off the processor.

#![allow(unsafe_code, reason = "instructions and a system call that Rust has no function for")]

use std::sync::OnceLock;

/// Rows that a tile has at most.
pub(super) const ROWS: usize = 16;
/// Bytes that a row of a tile has at most.
const ROW_BYTES: usize = 64;
/// Numbers that are multiplied and added up in one lane.
const GROUP: usize = 4;

/// Whether tiles can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// The machine has none.
    Absent,
    /// The machine has them and its kernel does not let this process use them.
    Refused,
    /// They may be used by all threads of this process.
    Granted,
}

/// Whether tiles can be used: asks the kernel for leave, once for the whole process. Threads that were started before
/// have it too.
pub(super) fn offer() -> Offer {
    static OFFER: OnceLock<Offer> = OnceLock::new();
    *OFFER.get_or_init(|| decide(facts(), ask))
}

/// What the processor says of itself.
#[derive(Clone, Copy, Debug, Default)]
struct Facts {
    /// EDX of leaf 7: features.
    features: u32,
    /// EAX of leaf 1D: the last palette.
    last_palette: u32,
    /// EAX, EBX and ECX of the leaf of palette 1: bytes of all tiles and of one, bytes of a row and tiles, rows.
    palette: [u32; 3],
}

fn decide(facts: Facts, ask: impl FnOnce() -> bool) -> Offer {
    let has = |bit: u32| facts.features & 1 << bit != 0;
    // Tiles are bit 24, products of bytes bit 25. The palette is the one that every processor has so far: eight tiles
    // of sixteen rows of 64 bytes.
    let as_expected = facts.last_palette >= 1 && facts.palette == [1024 << 16 | 8192, 8 << 16 | 64, 16];
    match has(24) && has(25) && as_expected {
        false => Offer::Absent,
        true if ask() => Offer::Granted,
        true => Offer::Refused,
    }
}

fn facts() -> Facts {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let last = __cpuid(0).eax;
    if last < 0x1d {
        return Facts::default();
    }
    let palette = __cpuid_count(0x1d, 1);
    Facts {
        features: __cpuid_count(7, 0).edx,
        last_palette: __cpuid_count(0x1d, 0).eax,
        palette: [palette.eax, palette.ebx, palette.ecx & 0xffff],
    }
}

/// Asks the kernel for leave to use tiles (Documentation/arch/x86/xstate.rst).
fn ask() -> bool {
    const ARCH_REQ_XCOMP_PERM: nix::libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: nix::libc::c_long = 18;
    // SAFETY: the call takes numbers only; what it changes is how much of a thread's state the kernel saves.
    let refused =
        unsafe { nix::libc::syscall(nix::libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } != 0;
    if refused {
        let error = std::io::Error::last_os_error();
        tracing::warn!(%error, "the kernel does not let this process use AMX; computing with AVX-512");
    }
    !refused
}

/// How the tiles are cut, as `ldtilecfg` reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C, align(64))]
pub(super) struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row, for each tile; the last eight are reserved.
    row_bytes: [u16; 16],
    /// Rows, for each tile; the last eight are reserved.
    rows: [u8; 16],
}

impl Config {
    fn new(tiles: &[(usize, usize)]) -> Self {
        let mut config = Self { palette: 1, ..Self::default() };
        for (index, (rows, row_bytes)) in tiles.iter().enumerate() {
            config.rows[index] = *rows as u8;
            config.row_bytes[index] = *row_bytes as u16;
        }
        config
    }
}

/// Something that has tiles. Numbers of tiles are constants, since they are part of the instruction.
///
/// # Safety
/// For all functions: the processor has the instructions and the kernel gave leave, and tiles are as they were configured by
/// the last call of [`Unit::configure`] on this thread since [`Unit::release`]. Slices are as long as the tile's rows,
/// `stride` apart, ask for.
pub(super) unsafe trait Unit {
    /// Cuts the tiles and sets them to zero.
    unsafe fn configure(&mut self, config: &Config);
    /// Fills a tile.
    unsafe fn load<const T: u8>(&mut self, from: &[u8], stride: usize);
    /// Sets a tile to zero.
    unsafe fn zero<const T: u8>(&mut self);
    /// Adds the products of tile `A` and tile `B`, both of signed bytes, to tile `C`.
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self);
    /// Writes a tile of sums out.
    unsafe fn store<const T: u8>(&self, to: &mut [i32], stride: usize);
    /// Gives all tiles back.
    unsafe fn release(&mut self);
}

/// The instructions themselves. Nothing that the compiler makes uses tiles, so what one of these leaves in a tile the next
/// finds there; none is pure, so their order stays.
#[derive(Clone, Copy)]
pub(super) struct Instructions;

// SAFETY: each does what it says; what memory they touch is the promise of the caller.
unsafe impl Unit for Instructions {
    #[inline(always)]
    unsafe fn configure(&mut self, config: &Config) {
        // SAFETY: 64 bytes are read from `config`.
        unsafe { std::arch::asm!("ldtilecfg [{at}]", at = in(reg) config, options(nostack, readonly)) };
    }

    #[inline(always)]
    unsafe fn load<const T: u8>(&mut self, from: &[u8], stride: usize) {
        // SAFETY: rows that far apart lie in `from`.
        unsafe {
            std::arch::asm!("tileloadd tmm{tile}, [{from} + {stride}]", tile = const T, from = in(reg) from.as_ptr(),
                stride = in(reg) stride, options(nostack, readonly, preserves_flags))
        };
    }

    #[inline(always)]
    unsafe fn zero<const T: u8>(&mut self) {
        // SAFETY: no memory is touched.
        unsafe { std::arch::asm!("tilezero tmm{tile}", tile = const T, options(nostack, nomem, preserves_flags)) };
    }

    #[inline(always)]
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self) {
        // SAFETY: no memory is touched.
        unsafe {
            std::arch::asm!("tdpbssd tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags))
        };
    }

    #[inline(always)]
    unsafe fn store<const T: u8>(&self, to: &mut [i32], stride: usize) {
        // SAFETY: rows that far apart lie in `to`.
        unsafe {
            std::arch::asm!("tilestored [{to} + {stride}], tmm{tile}", tile = const T, to = in(reg) to.as_mut_ptr(),
                stride = in(reg) stride, options(nostack, preserves_flags))
        };
    }

    #[inline(always)]
    unsafe fn release(&mut self) {
        // SAFETY: no memory is touched.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// The sums of sixteen rows by sixteen outputs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [[i32; ROWS]; ROWS]);

/// Multiplies so many rows of so many inputs. The tiles are its own while it lives.
pub(super) struct Multiplier<'a, U: Unit> {
    unit: &'a mut U,
    rows: usize,
    inputs: usize,
}

impl<'a, U: Unit> Multiplier<'a, U> {
    /// # Safety
    /// The unit may be used on this thread: see [`Offer::Granted`].
    pub(super) unsafe fn new(unit: &'a mut U, rows: usize, inputs: usize) -> Self {
        assert!((1..=ROWS).contains(&rows) && (GROUP..=ROW_BYTES).contains(&inputs) && inputs.is_multiple_of(GROUP));
        let (sums, x, weights) = ((rows, ROW_BYTES), (rows, inputs), (inputs / GROUP, ROW_BYTES));
        // SAFETY: the caller's promise.
        unsafe { unit.configure(&Config::new(&[sums, sums, sums, sums, x, x, weights, weights])) };
        Self { unit, rows, inputs }
    }

    /// The products of the rows in `x`, `stride` bytes apart, with `weights`: four inputs of sixteen outputs after four
    /// inputs. Both go on with the next inputs, for as many products as `out` has places.
    #[inline(always)]
    pub(super) fn multiply(&mut self, x: &[i8], stride: usize, weights: &[i8], out: &mut [Sums]) {
        let (each, fours) = (self.inputs, out.len() / 4);
        let x = &x[..(self.rows - 1) * stride + out.len() * each];
        let weights = &weights[..out.len() * each * ROWS];
        // SAFETY: `new` had the caller's promise and configured the tiles, which are released with `self`. `x` and
        // `weights` were cut to what is read here, and the sums have room for sixteen rows. A signed byte is a byte.
        unsafe {
            let bytes = |from: &[i8]| std::slice::from_raw_parts(from.as_ptr().cast::<u8>(), from.len());
            let (x, weights) = (bytes(x), bytes(weights));
            let (x, weights) =
                (|i: usize| x.get_unchecked(i * each..), |i: usize| weights.get_unchecked(i * each * ROWS..));
            // Four at a time, since one would have to be waited for.
            for (index, out) in out.chunks_exact_mut(4).enumerate() {
                let at = 4 * index;
                self.dot::<0, 4, 6>(x(at), stride, weights(at));
                self.dot::<1, 5, 7>(x(at + 1), stride, weights(at + 1));
                self.dot::<2, 4, 6>(x(at + 2), stride, weights(at + 2));
                self.dot::<3, 5, 7>(x(at + 3), stride, weights(at + 3));
                self.unit.store::<0>(out[0].0.as_flattened_mut(), ROW_BYTES);
                self.unit.store::<1>(out[1].0.as_flattened_mut(), ROW_BYTES);
                self.unit.store::<2>(out[2].0.as_flattened_mut(), ROW_BYTES);
                self.unit.store::<3>(out[3].0.as_flattened_mut(), ROW_BYTES);
            }
            for (index, out) in out[4 * fours..].iter_mut().enumerate() {
                let at = 4 * fours + index;
                self.dot::<0, 4, 6>(x(at), stride, weights(at));
                self.unit.store::<0>(out.0.as_flattened_mut(), ROW_BYTES);
            }
        }
    }

    /// # Safety
    /// Rows and weights are as long as the tiles ask for.
    #[inline(always)]
    unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self, x: &[u8], stride: usize, weights: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe {
            self.unit.zero::<C>();
            self.unit.load::<A>(x, stride);
            self.unit.load::<B>(weights, ROW_BYTES);
            self.unit.dot::<C, A, B>();
        }
    }
}

impl<U: Unit> Drop for Multiplier<'_, U> {
    fn drop(&mut self) {
        // SAFETY: as in `with`.
        unsafe { self.unit.release() };
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test hands bytes to a disassembler")]
pub(super) mod tests {
    use super::*;

    /// The instructions as their manual describes them (Intel 64 and IA-32 Software Developer's Manual, volume 2,
    /// "Operation" of each); what would be a fault is a panic.
    pub(crate) struct Model {
        config: Option<Config>,
        tiles: [[[u8; ROW_BYTES]; ROWS]; 8],
    }

    impl Default for Model {
        fn default() -> Self {
            Self { config: None, tiles: [[[0; ROW_BYTES]; ROWS]; 8] }
        }
    }

    impl Model {
        pub(crate) fn is_released(&self) -> bool {
            self.config.is_none() && self.tiles.as_flattened().as_flattened().iter().all(|byte| *byte == 0)
        }

        /// Rows and bytes of a row.
        fn shape(&self, tile: u8) -> (usize, usize) {
            let config = self.config.as_ref().expect("#UD: tiles are not configured");
            let shape = (config.rows[usize::from(tile)].into(), config.row_bytes[usize::from(tile)].into());
            assert!(shape.0 > 0 && shape.1 > 0, "#UD: tile {tile} is not configured");
            shape
        }

        fn lane(&self, tile: u8, row: usize, lane: usize) -> [u8; 4] {
            self.tiles[usize::from(tile)][row][4 * lane..][..4].try_into().unwrap()
        }
    }

    // SAFETY: nothing here is.
    unsafe impl Unit for Model {
        unsafe fn configure(&mut self, config: &Config) {
            assert_eq!(config.palette, 1, "#GP: the palette is not supported");
            assert_eq!((config.start_row, config.reserved), (0, [0; 14]), "#GP: reserved bytes");
            assert!(config.row_bytes[8..] == [0; 8] && config.rows[8..] == [0; 8], "#GP: reserved tiles");
            for (rows, row_bytes) in config.rows.iter().zip(config.row_bytes) {
                assert!(usize::from(*rows) <= ROWS && usize::from(row_bytes) <= ROW_BYTES, "#GP: beyond the palette");
                assert_eq!(*rows == 0, row_bytes == 0, "#GP: half a shape");
            }
            *self = Self { config: Some(config.clone()), ..Self::default() };
        }

        unsafe fn load<const T: u8>(&mut self, from: &[u8], stride: usize) {
            let (rows, row_bytes) = self.shape(T);
            let tile = &mut self.tiles[usize::from(T)];
            // Rows and bytes beyond the shape become zero.
            *tile = [[0; ROW_BYTES]; ROWS];
            for (row, to) in tile.iter_mut().take(rows).enumerate() {
                to[..row_bytes].copy_from_slice(&from[row * stride..][..row_bytes]);
            }
        }

        unsafe fn zero<const T: u8>(&mut self) {
            self.shape(T);
            self.tiles[usize::from(T)] = [[0; ROW_BYTES]; ROWS];
        }

        unsafe fn dot<const C: u8, const A: u8, const B: u8>(&mut self) {
            assert!(C != A && C != B && A != B, "#UD: a tile twice");
            let ((m, c_bytes), (a_rows, a_bytes), (b_rows, b_bytes)) = (self.shape(C), self.shape(A), self.shape(B));
            assert!([c_bytes, a_bytes, b_bytes].iter().all(|bytes| bytes % 4 == 0), "#UD: parts of numbers");
            assert!(m == a_rows && a_bytes / 4 == b_rows && c_bytes == b_bytes, "#UD: shapes do not fit");
            for row in 0..m {
                let mut sums: Vec<i32> = (0..c_bytes / 4).map(|n| i32::from_le_bytes(self.lane(C, row, n))).collect();
                for k in 0..a_bytes / 4 {
                    for (n, sum) in sums.iter_mut().enumerate() {
                        for (x, w) in self.lane(A, row, k).into_iter().zip(self.lane(B, k, n)) {
                            *sum = sum.wrapping_add(i32::from(x as i8) * i32::from(w as i8));
                        }
                    }
                }
                let to = &mut self.tiles[usize::from(C)][row];
                *to = [0; ROW_BYTES];
                to.chunks_exact_mut(4).zip(sums).for_each(|(to, sum)| to.copy_from_slice(&sum.to_le_bytes()));
            }
            self.tiles[usize::from(C)][m..].fill([0; ROW_BYTES]);
        }

        unsafe fn store<const T: u8>(&self, to: &mut [i32], stride: usize) {
            let (rows, row_bytes) = self.shape(T);
            assert!(stride.is_multiple_of(4) && row_bytes.is_multiple_of(4));
            for row in 0..rows {
                let to = &mut to[row * stride / 4..][..row_bytes / 4];
                to.iter_mut().enumerate().for_each(|(n, to)| *to = i32::from_le_bytes(self.lane(T, row, n)));
            }
        }

        unsafe fn release(&mut self) {
            *self = Self::default();
        }
    }

    #[test]
    fn tiles_are_used_where_processor_and_kernel_both_have_them() {
        let palette = [0x0400_2000, 0x0008_0040, 0x10];
        let all = Facts { features: 1 << 24 | 1 << 25, last_palette: 1, palette };
        for (facts, leave, expected) in [
            (all, true, Offer::Granted),
            (all, false, Offer::Refused),
            (Facts { features: 1 << 24, ..all }, true, Offer::Absent),
            (Facts { features: 1 << 25 | 1 << 22, ..all }, true, Offer::Absent),
            (Facts { last_palette: 0, ..all }, true, Offer::Absent),
            (Facts { palette: [0x0400_2000, 0x0008_0040, 8], ..all }, true, Offer::Absent),
            (Facts::default(), true, Offer::Absent),
        ] {
            let mut asked = false;
            let found = decide(facts, || {
                asked = true;
                leave
            });
            assert_eq!((found, asked), (expected, expected != Offer::Absent), "{facts:?}");
        }
    }

    #[test]
    fn the_configuration_lies_as_published() {
        let config = Config::new(&[(16, 64), (3, 32), (8, 64)]);
        // SAFETY: the type is bytes and 16-bit numbers without gaps.
        let bytes = unsafe { std::mem::transmute::<Config, [u8; 64]>(config.clone()) };
        let mut expected = [0; 64];
        expected[0] = 1;
        (expected[16], expected[18], expected[20]) = (64, 32, 64);
        (expected[48], expected[49], expected[50]) = (16, 3, 8);
        assert_eq!(bytes, expected);
        assert_eq!(std::mem::align_of_val(&config), 64);
    }

    /// Products of a multiplier with those rows and inputs.
    fn multiplied<U: Unit>(unit: &mut U, rows: usize, inputs: usize) -> Vec<[i32; ROWS]> {
        let stride = 6 * inputs + 5;
        let x: Vec<i8> = (0..rows * stride).map(|i| (i * 37 % 256) as u8 as i8).collect();
        let weights: Vec<i8> = (0..6 * inputs * ROWS).map(|i| (i * 59 % 256) as u8 as i8).collect();
        let mut sums = [Sums([[7; ROWS]; ROWS]); 6];
        // SAFETY: the caller knows that the unit may be used.
        let mut tiles = unsafe { Multiplier::new(unit, rows, inputs) };
        tiles.multiply(&x[..rows * stride - 5], stride, &weights, &mut sums);
        drop(tiles);
        for ((index, sums), row) in sums.iter().enumerate().flat_map(|sums| (0..rows).map(move |row| (sums, row))) {
            for (output, sum) in sums.0[row].iter().enumerate() {
                let x = &x[row * stride + index * inputs..];
                let weight = |i: usize| weights[index * inputs * ROWS + (i / 4 * ROWS + output) * 4 + i % 4];
                let expected: i32 = (0..inputs).map(|i| i32::from(x[i]) * i32::from(weight(i))).sum();
                assert_eq!(*sum, expected, "product {index}, row {row}, output {output}");
            }
        }
        sums.iter().flat_map(|sums| sums.0).collect()
    }

    const SHAPES: [(usize, usize); 6] = [(1, 4), (1, 32), (9, 16), (15, 32), (16, 16), (16, 64)];

    #[test]
    fn the_model_multiplies() {
        for (rows, inputs) in SHAPES {
            multiplied(&mut Model::default(), rows, inputs);
        }
    }

    #[test]
    fn the_instructions_do_as_the_model_does() {
        if offer() != Offer::Granted {
            println!("skipped: the instructions themselves were not run, tiles are {:?} here", offer());
            return;
        }
        for (rows, inputs) in SHAPES {
            assert_eq!(
                multiplied(&mut Instructions, rows, inputs),
                multiplied(&mut Model::default(), rows, inputs),
                "{rows} rows of {inputs}"
            );
        }
    }

    /// Each instruction in a function that is never called.
    mod samples {
        use super::*;

        #[inline(never)]
        pub(super) unsafe extern "C" fn configure(config: &Config) {
            // SAFETY (all): the caller's.
            unsafe { Instructions.configure(config) };
        }

        #[inline(never)]
        pub(super) unsafe extern "C" fn load(from: *const u8, stride: usize) {
            unsafe { Instructions.load::<3>(std::slice::from_raw_parts(from, 0), stride) };
        }

        #[inline(never)]
        pub(super) unsafe extern "C" fn zero() {
            unsafe { Instructions.zero::<6>() };
        }

        #[inline(never)]
        pub(super) unsafe extern "C" fn dot() {
            unsafe { Instructions.dot::<1, 3, 5>() };
        }

        #[inline(never)]
        pub(super) unsafe extern "C" fn store(to: *mut i32, stride: usize) {
            unsafe { Instructions.store::<7>(std::slice::from_raw_parts_mut(to, 0), stride) };
        }

        #[inline(never)]
        pub(super) unsafe extern "C" fn release() {
            unsafe { Instructions.release() };
        }
    }

    #[test]
    fn the_encodings_are_the_published_ones() {
        // As the manual has them: VEX with three bytes, map 0F38; W0, 128 bits, and the prefix that is told.
        let vex = |prefix: u8, operand: u8, rest: &[u8]| [&[0xc4, 0xe2, (!operand & 15) << 3 | prefix], rest].concat();
        // In the order of the calling convention, addresses are rdi and rsi.
        let all: [(*const (), Vec<u8>, &str); 6] = [
            (samples::configure as *const (), vex(0, 0, &[0x49, 0x07]), "ldtilecfg [rdi]"),
            (samples::load as *const (), vex(3, 0, &[0x4b, 0x1c, 0x37]), "tileloadd tmm3,[rdi+rsi*1]"),
            (samples::zero as *const (), vex(3, 0, &[0x49, 0xf0]), "tilezero tmm6"),
            (samples::dot as *const (), vex(3, 5, &[0x5e, 0xcb]), "tdpbssd tmm1,tmm3,tmm5"),
            (samples::store as *const (), vex(2, 0, &[0x4b, 0x3c, 0x37]), "tilestored [rdi+rsi*1],tmm7"),
            (samples::release as *const (), vex(0, 0, &[0x49, 0xc0]), "tilerelease"),
        ];
        for (function, bytes, text) in all {
            // SAFETY: a function's code can be read; what is behind these is the rest of the program.
            let code = unsafe { std::slice::from_raw_parts(function.cast::<u8>(), 64) };
            let at = code.windows(bytes.len()).position(|window| window == bytes);
            let at = at.unwrap_or_else(|| panic!("{text} is {bytes:x?}, which is not in {code:x?}"));
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &code[at..at + bytes.len()]).unwrap();
            let objdump = std::process::Command::new("objdump")
                .args(["-D", "-b", "binary", "-m", "i386:x86-64", "-M", "intel"])
                .arg(file.path())
                .output();
            match objdump {
                Ok(done) => {
                    let said = String::from_utf8_lossy(&done.stdout);
                    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
                    assert!(words.ends_with(text), "{text}: the disassembler says {said}");
                }
                Err(error) => {
                    assert!(std::env::var_os("KEDGE_TEST_REQUIRE_BINUTILS").is_none(), "objdump: {error}");
                    println!("skipped: no disassembler was asked about {text}: {error}");
                }
            }
        }
    }
}
