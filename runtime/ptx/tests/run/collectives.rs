//! What a warp does together: shuffles, votes, barriers with outcomes, matrix products and their loads.

use crate::{Run, WRITE, numbers};

#[test]
fn a_sum_by_shuffles_and_votes() {
    let body = "
        mov.u32 %r2, %t;
        shfl.sync.bfly.b32 %r3|%p1, %r2, 16, 31, -1; add.u32 %r2, %r2, %r3;
        shfl.sync.bfly.b32 %r3|%p1, %r2, 8, 31, -1; add.u32 %r2, %r2, %r3;
        shfl.sync.bfly.b32 %r3|%p1, %r2, 4, 31, -1; add.u32 %r2, %r2, %r3;
        shfl.sync.bfly.b32 %r3|%p1, %r2, 2, 31, -1; add.u32 %r2, %r2, %r3;
        shfl.sync.bfly.b32 %r3, %r2, 1, 31, -1; add.u32 %r2, %r2, %r3;
        shfl.sync.up.b32 %r4|%p2, %t, 1, 0, -1;
        selp.u32 %r4, %r4, 0, %p2;
        setp.lt.u32 %p3, %t, 4; vote.sync.ballot.b32 %r5, %p3, -1; vote.sync.any.pred %p4, !%p3, -1;
        selp.u32 %r6, 1000, 0, %p4;
        and.b32 %r7, %t, 1; match.any.sync.b32 %r8, %r7, -1; and.b32 %r8, %r8, 1;
        redux.sync.max.u32 %r10, %t, -1;
        bar.warp.sync -1;
        add.u32 %r9, %r2, %r4; add.u32 %r9, %r9, %r5; add.u32 %r9, %r9, %r6; add.u32 %r9, %r9, %r8; add.u32 %r9, %r9, %r10;";
    let got = Run::default().good(&format!("{body}{WRITE}"));
    let expected = (0..32u32).map(|t| 496 + t.saturating_sub(1) + 15 + 1000 + u32::from(t % 2 == 0) + 31);
    assert_eq!(got, expected.collect::<Vec<u32>>());
}

#[test]
fn barriers_with_outcomes_and_with_counts() {
    let body = "
        setp.lt.u32 %p1, %t, 70;
        bar.red.popc.u32 %r2, 0, %p1; barrier.red.and.pred %p2, 0, %p1; bar.red.or.pred %p3, 0, !%p1;
        selp.u32 %r3, 1000, 0, %p2; selp.u32 %r4, 2000, 0, %p3;
        setp.ge.u32 %p4, %t, 64; @%p4 bra SECOND;
        bar.sync 1, 64; bra JOIN;
        SECOND: bar.arrive 2, 64; bar.sync 3, 32;
        JOIN: setp.ge.u32 %p5, %t, 32; @%p5 bra DONE; bar.sync 2, 64;
        DONE: add.u32 %r9, %r2, %r3; add.u32 %r9, %r9, %r4;";
    let got = Run { block: 96, words: 96, ..Run::default() }.good(&format!("{body}{WRITE}"));
    assert!(got.iter().all(|&word| word == 2070), "{got:?}");
}

/// Where the elements of a fragment stand, written as in the PTX ISA: for `lane` and `i`, the row and column.
type Position = fn(usize, usize) -> (usize, usize);

struct Shape {
    opcode: &'static str,
    rows: usize,
    depth: usize,
    bits: usize,
    a: (usize, Position),
    b: (usize, Position),
}

const SUM: Position = |lane, i| (lane / 4 + if i < 2 { 0 } else { 8 }, lane % 4 * 2 + (i & 1));

const SHAPES: [Shape; 8] = [
    Shape {
        opcode: "m16n8k16.row.col.f32.f16.f16.f32",
        rows: 16,
        depth: 16,
        bits: 16,
        a: (8, |lane, i| {
            let row = if i < 2 || (4..6).contains(&i) { lane / 4 } else { lane / 4 + 8 };
            (row, lane % 4 * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
        }),
        b: (4, |lane, i| (lane % 4 * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, lane / 4)),
    },
    Shape {
        opcode: "m16n8k16.row.col.f32.bf16.bf16.f32",
        rows: 16,
        depth: 16,
        bits: 16,
        a: (8, |lane, i| {
            let row = if i < 2 || (4..6).contains(&i) { lane / 4 } else { lane / 4 + 8 };
            (row, lane % 4 * 2 + (i & 1) + if i >= 4 { 8 } else { 0 })
        }),
        b: (4, |lane, i| (lane % 4 * 2 + (i & 1) + if i >= 2 { 8 } else { 0 }, lane / 4)),
    },
    Shape {
        opcode: "m16n8k8.row.col.f32.f16.f16.f32",
        rows: 16,
        depth: 8,
        bits: 16,
        a: (4, |lane, i| (if i < 2 { lane / 4 } else { lane / 4 + 8 }, lane % 4 * 2 + (i & 1))),
        b: (2, |lane, i| (lane % 4 * 2 + i, lane / 4)),
    },
    Shape {
        opcode: "m16n8k8.row.col.f32.tf32.tf32.f32",
        rows: 16,
        depth: 8,
        bits: 32,
        a: (4, |lane, i| (if i % 2 == 0 { lane / 4 } else { lane / 4 + 8 }, lane % 4 + if i >= 2 { 4 } else { 0 })),
        b: (2, |lane, i| (lane % 4 + if i == 1 { 4 } else { 0 }, lane / 4)),
    },
    Shape {
        opcode: "m16n8k32.row.col.s32.s8.s8.s32",
        rows: 16,
        depth: 32,
        bits: 8,
        a: (16, |lane, i| {
            let row = if i < 4 || (8..12).contains(&i) { lane / 4 } else { lane / 4 + 8 };
            (row, lane % 4 * 4 + (i & 3) + if i >= 8 { 16 } else { 0 })
        }),
        b: (8, |lane, i| (lane % 4 * 4 + (i & 3) + if i >= 4 { 16 } else { 0 }, lane / 4)),
    },
    Shape {
        opcode: "m16n8k16.row.col.s32.s8.s8.s32",
        rows: 16,
        depth: 16,
        bits: 8,
        a: (8, |lane, i| (if i < 4 { lane / 4 } else { lane / 4 + 8 }, lane % 4 * 4 + (i & 3))),
        b: (4, |lane, i| (lane % 4 * 4 + i, lane / 4)),
    },
    Shape {
        opcode: "m8n8k16.row.col.s32.s8.s8.s32",
        rows: 8,
        depth: 16,
        bits: 8,
        a: (4, |lane, i| (lane / 4, lane % 4 * 4 + i)),
        b: (4, |lane, i| (lane % 4 * 4 + i, lane / 4)),
    },
    Shape {
        opcode: "m8n8k16.row.col.satfinite.s32.u8.s8.s32",
        rows: 8,
        depth: 16,
        bits: 8,
        a: (4, |lane, i| (lane / 4, lane % 4 * 4 + i)),
        b: (4, |lane, i| (lane % 4 * 4 + i, lane / 4)),
    },
];

/// The value of a small whole number in the shape's type, and how to read the sum.
fn encode(opcode: &str, value: i32) -> u32 {
    let single = (value as f32).to_bits();
    if opcode.contains("bf16") {
        single >> 16
    } else if opcode.contains("f16") {
        let magnitude = value.unsigned_abs();
        if magnitude == 0 {
            return 0;
        }
        let exponent = magnitude.ilog2();
        u32::from(value < 0) << 15 | (exponent + 15) << 10 | (magnitude << (10 - exponent) & 0x3ff)
    } else if opcode.contains("tf32") {
        single
    } else {
        value as u8 as u32
    }
}

#[test]
fn matrix_products() {
    for shape in SHAPES {
        let mut random = numbers(2000).into_iter();
        let low = if shape.opcode.contains("u8") { 0 } else { 100 };
        let mut matrix =
            |count: usize| -> Vec<i32> { random.by_ref().take(count).map(|n| (n % 200) as i32 - low).collect() };
        let a = matrix(shape.rows * shape.depth);
        let b: Vec<i32> = matrix(shape.depth * 8).into_iter().map(|n| n.clamp(-128, 127)).collect();
        let c = matrix(shape.rows * 8);
        let floats = shape.opcode.contains("f32");
        // Words of the input: lane by lane, fragments A, B, C.
        let sums = shape.rows * 8 / 32;
        let (words_a, words_b) = (shape.a.0 * shape.bits / 32, shape.b.0 * shape.bits / 32);
        let mut input = Vec::new();
        for lane in 0..32 {
            let mut push = |count: usize, value: &dyn Fn(usize) -> i32| {
                let each = 32 / shape.bits;
                for word in 0..count / each {
                    input
                        .push((0..each).fold(0, |made, n| {
                            made | encode(shape.opcode, value(word * each + n)) << (n * shape.bits)
                        }));
                }
            };
            push(shape.a.0, &|i| {
                let (row, column) = shape.a.1(lane, i);
                a[row * shape.depth + column]
            });
            push(shape.b.0, &|i| {
                let (row, column) = shape.b.1(lane, i);
                b[row * 8 + column]
            });
            for i in 0..sums {
                let (row, column) = SUM(lane, i);
                let value = c[row * 8 + column];
                input.push(if floats { (value as f32).to_bits() } else { value as u32 });
            }
        }
        let stride = words_a + words_b + sums;
        let list = |first: usize, count: usize| {
            (first..first + count).map(|n| format!("%r{}", 10 + n)).collect::<Vec<_>>().join(", ")
        };
        let mut body = format!("mul.lo.u32 %r2, %t, {}; cvt.u64.u32 %rd1, %r2; add.u64 %rd1, %rd1, %in;", 4 * stride);
        for n in 0..stride {
            body += &format!("ld.global.b32 %r{}, [%rd1+{}];", 10 + n, 4 * n);
        }
        body += &format!(
            "mma.sync.aligned.{} {{{}}}, {{{}}}, {{{}}}, {{{}}};",
            shape.opcode,
            list(20, sums),
            list(0, words_a),
            list(words_a, words_b),
            list(words_a + words_b, sums)
        );
        body += &format!("mul.lo.u32 %r2, %t, {}; cvt.u64.u32 %rd1, %r2; add.u64 %rd1, %rd1, %out;", 4 * sums);
        for n in 0..sums {
            body += &format!("st.global.b32 [%rd1+{}], %r{};", 4 * n, 30 + n);
        }
        let got = Run { input, words: 32 * sums, ..Run::default() }.good(&body);
        for lane in 0..32 {
            for i in 0..sums {
                let (row, column) = SUM(lane, i);
                let sum = (0..shape.depth).map(|k| a[row * shape.depth + k] * b[k * 8 + column]).sum::<i32>()
                    + c[row * 8 + column];
                let word = got[lane * sums + i];
                let word = if floats { f32::from_bits(word) as i32 } else { word as i32 };
                assert_eq!(word, sum, "{} row {row} column {column}", shape.opcode);
            }
        }
    }
}

#[test]
fn matrix_products_summed_in_halves() {
    // A is all ones (1.0 twice in each register), B twos, C 0.5 and 1.5: sums 16*2 + C.
    let body = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r9, %r10},
        {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00}, {0x40004000, 0x40004000}, {0x3e003800, 0x3e003800};";
    let got = Run::default().good(&format!("{body}{WRITE}"));
    assert_eq!(got, [0x5030_5010; 32]);
}

#[test]
fn matrices_from_shared_memory() {
    // Element `e` of matrix `m` is 100 m + e; rows lie 48 bytes apart, the four matrices 8 rows apart.
    let store = "
        .shared .align 16 .b8 s[1536];
        mov.u32 %r2, 0;
        FILL: shl.b32 %r3, %t, 3; shr.u32 %r4, %t, 3; and.b32 %r5, %r3, 63; mad.lo.u32 %r6, %r4, 100, %r5; add.u32 %r6, %r6, %r2;
        mul.lo.u32 %r7, %t, 48; shl.b32 %r8, %r2, 1; add.u32 %r7, %r7, %r8; mov.u32 %r8, s; add.u32 %r7, %r7, %r8;
        cvt.u16.u32 %h1, %r6; st.shared.u16 [%r7], %h1; add.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, 8; @%p1 bra FILL;
        bar.sync 0; mul.lo.u32 %r7, %t, 48; mov.u32 %r8, s; add.u32 %r7, %r7, %r8;";
    let element = |matrix: u32, row: u32, column: u32| 100 * matrix + 8 * row + column;
    for (form, registers, matrix, transposed) in [
        ("x1", "%r9", 0, false),
        ("x2.trans", "%r20, %r9", 1, true),
        ("x4", "%r20, %r21, %r9, %r22", 2, false),
        ("x4.trans", "%r20, %r21, %r22, %r9", 3, true),
    ] {
        let load = format!("ldmatrix.sync.aligned.m8n8.{form}.shared.b16 {{{registers}}}, [%r7];");
        let got = Run::default().good(&format!("{store}{load}{WRITE}"));
        for lane in 0..32 {
            let (a, b) = (lane / 4, lane % 4 * 2);
            let (first, second) = if transposed {
                (element(matrix, b, a), element(matrix, b + 1, a))
            } else {
                (element(matrix, a, b), element(matrix, a, b + 1))
            };
            assert_eq!(got[lane as usize], first | second << 16, "{form} lane {lane}");
        }
    }
}
