//! Loads, stores and atomics in every space.

use crate::{Run, WRITE, numbers};
use kedge_ptx::{Launch, Memory, Module};

#[test]
fn widths_signs_and_vectors() {
    let input = vec![0x8081_7f01, 0xffff_8000, 0x0000_0005, 0x1234_5678];
    for (body, expected) in [
        ("ld.global.u8 %h1, [%in+3]; cvt.u32.u16 %r9, %h1;", 0x80),
        ("ld.global.s8 %r9, [%in+3];", 0xffff_ff80),
        ("ld.global.s8 %h1, [%in+3]; cvt.u32.u16 %r9, %h1;", 0xff80),
        ("ld.global.u16 %h1, [%in+4]; cvt.s32.s16 %r9, %h1;", 0xffff_8000),
        ("ld.global.nc.v2.u16 {%h1, %h2}, [%in+4]; cvt.u32.u16 %r9, %h2;", 0xffff),
        ("ld.global.v4.u32 {%r2, _, %r3, %r9}, [%in];", 0x1234_5678),
        ("ld.global.L1::no_allocate.L2::128B.v2.u64 {%rd1, %rd2}, [%in]; cvt.u32.u64 %r9, %rd2;", 5),
        ("ld.u32 %r9, [%in+8];", 5),
        ("ld.param.u64 %rd1, [k_in]; ld.volatile.global.u32 %r9, [%rd1+8];", 5),
        ("ld.global.v4.u8 {%h1, %h2, %h3, %h4}, [%in]; cvt.u32.u16 %r9, %h4;", 0x80),
        ("mov.b64 %rd1, {1, 2}; mov.b64 {%r2, %r9}, %rd1;", 2),
        ("mov.b32 %r2, {0, 7}; mov.b32 {%h1, %h2}, %r2; cvt.u32.u16 %r9, %h2;", 7),
        ("mov.b64 %rd1, k_in; ld.param.u32 %r2, [%rd1]; cvt.u32.u64 %r3, %in; sub.u32 %r9, %r2, %r3;", 0),
        ("mov.u32 %r9, WARP_SZ;", 32),
    ] {
        let got = Run { input: input.clone(), block: 1, words: 1, ..Run::default() }.good(&format!("{body}{WRITE}"));
        assert_eq!(got[0], expected, "{body}");
    }
}

#[test]
fn constants_globals_and_local_memory() {
    let before = "
        .const .align 4 .b8 c[8] = {1, 0, 0, 0, 2};
        .const .align 8 .f32 half = 0.5;
        .global .align 4 .u32 g[3] = {10, 20};
        .extern .shared .align 16 .b8 dyn[];
        .shared .align 4 .b8 fixed[12];";
    let body = "
        .local .align 16 .b8 depot[32]; .shared .align 8 .b8 more[20]; .reg .b64 %SP; .reg .b64 %SPL;
        mov.u64 %SPL, depot; cvta.local.u64 %SP, %SPL;
        st.local.v4.u32 [%SPL+16], {%t, %t, %t, %t};
        ld.u32 %r2, [%SP+20];
        ld.const.u32 %r3, [c+4]; mov.u64 %rd1, c; ld.const.u32 %r4, [%rd1];
        cvta.const.u64 %rd1, %rd1; ld.u32 %r5, [%rd1+4];
        ld.global.u32 %r6, [g+4]; mov.u64 %rd2, g+8; ld.global.u32 %r7, [%rd2];
        ld.const.f32 %f1, [half]; cvt.rzi.s32.f32 %r8, %f1;
        add.u32 %r9, %r2, %r3; add.u32 %r9, %r9, %r4; add.u32 %r9, %r9, %r5; add.u32 %r9, %r9, %r6;
        add.u32 %r9, %r9, %r7; add.u32 %r9, %r9, %r8;
        mov.u32 %r10, dyn; mov.u32 %r11, fixed; mov.u32 %r12, more; mov.u32 %r13, %dynamic_smem_size;
        mad.lo.u32 %r9, %r10, 10000, %r9; mad.lo.u32 %r9, %r13, 1000000, %r9;";
    let got = Run { before, shared: 64, ..Run::default() }.good(&format!("{body}{WRITE}"));
    // 20 + 12 bytes, then dynamic memory, aligned to 16.
    assert_eq!(got, (0..32).map(|t| t + 2 + 1 + 2 + 20 + 32 * 10000 + 64_000_000).collect::<Vec<u32>>());
}

#[test]
fn variables_outlive_a_launch() {
    let text =
        crate::text(".global .u32 counter = 7;", "atom.global.add.u32 %r9, [counter], 1; st.global.u32 [%mine], %r9;");
    let module = Module::parse(&text).expect("parses");
    let mut memory = Memory::new();
    let out = memory.alloc(128);
    let args: Vec<u8> = [out, out].into_iter().flat_map(u64::to_le_bytes).collect();
    let launch = Launch { kernel: "k", grid: [1; 3], block: [32, 1, 1], shared_bytes: 0, args: &args };
    module.launch(&mut memory, &launch).expect("runs");
    module.launch(&mut memory, &launch).expect("runs");
    assert_eq!(memory.read(out + 124, 4).expect("written"), [7 + 63, 0, 0, 0]);
    let counter = module.variable(&mut memory, "counter").expect("a variable");
    assert_eq!(memory.read(counter, 4).expect("written"), [7 + 64, 0, 0, 0]);
}

#[test]
fn what_a_module_says_of_its_kernels() {
    let text = ".version 8.4 .target sm_75 .address_size 64
        .visible .entry a(.param .u8 a_0, .param .u64 a_1, .param .align 4 .b8 a_2[12]) .maxntid 64, 1, 1 {
        .shared .align 4 .b8 s[40]; .reg .b32 %r; mov.u32 %r, s; ret; }
        .entry b() .reqntid 8 { ret; }";
    let module = Module::parse(text).expect("parses");
    let kernels: Vec<_> = module.kernels().collect();
    assert_eq!(kernels.iter().map(|k| k.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(
        kernels[0].params.iter().map(|p| (p.offset, p.size, p.align)).collect::<Vec<_>>(),
        [(0, 1, 1), (8, 8, 8), (16, 12, 4)]
    );
    assert_eq!((kernels[0].shared_bytes, kernels[0].max_threads), (40, Some([64, 1, 1])));
    assert_eq!(kernels[1].required_threads, Some([8, 1, 1]));
}

#[test]
fn shared_memory_between_barriers() {
    let body = "
        .shared .align 4 .b8 s[256];
        mov.u32 %r2, s; shl.b32 %r3, %r1, 2; add.u32 %r4, %r2, %r3; sub.u32 %r5, 252, %r3; add.u32 %r5, %r5, %r2;
        ld.global.u32 %r6, [%at]; st.shared.u32 [%r4], %r6; bar.sync 0; ld.shared.u32 %r9, [%r5];";
    let input = numbers(128);
    let got =
        Run { input: input.clone(), grid: 2, block: 64, words: 128, ..Run::default() }.good(&format!("{body}{WRITE}"));
    for (n, &got) in got.iter().enumerate() {
        assert_eq!(got, input[n / 64 * 64 + 63 - n % 64], "{n}");
    }
}

#[test]
fn atomics() {
    for (body, expected) in [
        ("atom.global.add.u32 %r9, [%out], 2; red.global.add.u32 [%out], 1;", vec![96]),
        ("red.global.max.s32 [%out], %t;", vec![31]),
        ("add.u32 %r2, %t, 5; sub.u32 %r3, 0, %r2; red.global.min.s32 [%out], %r3;", vec![36u32.wrapping_neg()]),
        ("mov.b32 %f1, 0f3F000000; red.global.add.f32 [%out], %f1;", vec![16f32.to_bits()]),
        ("mov.u32 %r2, 1; shl.b32 %r2, %r2, %t; atom.or.b32 %r3, [%out], %r2;", vec![u32::MAX]),
        ("atom.global.inc.u32 %r9, [%out], 9;", vec![2]),
        ("atom.global.cas.b32 %r9, [%out], %t, 1; ", vec![1]),
        ("atom.global.exch.b32 %r9, [%out], %t;", vec![31]),
        ("mov.b32 %r2, 0x3c003800; atom.global.add.noftz.f16x2 %r3, [%out], %r2;", vec![0x5000_4c00]),
        (
            ".shared .align 4 .u32 s; setp.eq.u32 %p1, %t, 0; @%p1 st.shared.u32 [s], 0; bar.sync 0;
          red.shared.add.u32 [s], %t; bar.sync 0; ld.shared.u32 %r9, [s]; st.global.u32 [%out], %r9;",
            vec![496],
        ),
    ] {
        let module = Module::parse(&crate::text("", body)).expect(body);
        let mut memory = Memory::new();
        let out = memory.alloc(128);
        memory.write(out, &[0; 128]).expect("inside");
        let args: Vec<u8> = [out, out].into_iter().flat_map(u64::to_le_bytes).collect();
        let launch = Launch { kernel: "k", grid: [1; 3], block: [32, 1, 1], shared_bytes: 0, args: &args };
        module.launch(&mut memory, &launch).unwrap_or_else(|error| panic!("{error}"));
        let got = memory.read(out, 4).expect("written");
        assert_eq!(got, expected[0].to_le_bytes(), "{body}");
    }
}
