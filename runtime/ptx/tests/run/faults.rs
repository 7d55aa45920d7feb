//! Each kind of error, and that it names the instruction, its line and the thread.

use crate::Run;
use kedge_ptx::{Error, Fault, Launch, Memory, Module};

/// Runs and gives the thread, the text and the fault.
#[track_caller]
fn fault(run: &Run, body: &str) -> ([u32; 3], String, Fault) {
    match run.run(body) {
        Err(Error::Run { kernel, thread, text, fault, line, .. }) => {
            assert_eq!(kernel, "k");
            let whole = crate::text(run.before, body);
            let written = whole.lines().nth(line as usize - 1).expect("a line of the text");
            let start = text.split_whitespace().next().unwrap_or("");
            assert!(written.contains(start), "line {line} is {written}, not {text}");
            (thread, text.to_string(), *fault)
        }
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn accesses() {
    let run = Run { input: vec![1; 32], ..Run::default() };
    let (thread, text, what) = fault(&run, "ld.global.u32 %r9, [%at+8];");
    assert_eq!((thread, text.as_str()), ([30, 0, 0], "ld.global.u32 %r9, [%at+8];"));
    assert!(matches!(what, Fault::OutOfBounds { size: 128, .. }), "{what}");
    for (body, expected) in [
        ("ld.global.u32 %r9, [%at+2];", "not aligned to 4"),
        ("ld.global.v4.u32 {%r9, %r8, %r7, %r6}, [%at];", "not aligned to 16"),
        ("ld.global.u32 %r9, [%mine];", "read before they were written"),
        ("mov.u64 %rd1, 0; st.global.u32 [%rd1], 1;", "nothing is there"),
        ("cvt.u32.u64 %r2, %in; cvt.u64.u32 %rd1, %r2; ld.u32 %r9, [%rd1];", "nothing is there"),
        (".shared .align 4 .b8 s[64]; st.shared.u32 [s+64], 1;", "outside of the 64 bytes"),
        (".shared .align 4 .b8 s[64]; ld.shared.u32 %r9, [s];", "read before they were written"),
        (".local .align 4 .b8 l[8]; st.local.u32 [l+8], 1;", "outside of the 8 bytes"),
        (".local .align 4 .b8 l[8]; ld.local.u32 %r9, [l];", "read before they were written"),
        ("ld.param.u32 %r9, [k_in+16];", "outside of the 16 bytes"),
        ("mov.u64 %rd1, k_in; cvta.param.u64 %rd1, %rd1; st.u32 [%rd1], 1;", "cannot be written"),
        ("trap;", "the kernel trapped"),
    ] {
        let (_, _, what) = fault(&run, body);
        assert!(what.to_string().contains(expected), "{body}: {what}");
    }
}

#[test]
fn the_message_says_where() {
    let run = Run { block: 64, grid: 2, words: 128, ..Run::default() };
    let error = run.run("setp.ne.u32 %p1, %t, 100; @%p1 exit;\nst.global.u32 [%mine+400], 1;").expect_err("outside");
    let told = error.to_string();
    for part in
        ["kernel `k`", "block [1, 0, 0]", "thread [36, 0, 0]", "`st.global.u32 [%mine+400], 1;`", "(offset 800)"]
    {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn members_that_are_elsewhere() {
    let run = Run::default();
    let some = "setp.lt.u32 %p1, %t, 8;";
    for body in [
        "@%p1 shfl.sync.idx.b32 %r9, %t, 0, 31, -1;",
        "@%p1 vote.sync.ballot.b32 %r9, %p1, -1;",
        "@%p1 bar.warp.sync -1;",
        "@%p1 redux.sync.add.s32 %r9, %t, 0xffff;",
        "@%p1 mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%r9, %r8}, {%t}, {%t}, {%t, %t};",
        "@!%p1 exit; shfl.sync.idx.b32 %r9, %t, 0, 31, -1;",
        "shfl.sync.idx.b32 %r9, %t, 0, 31, 0xff;",
        ".shared .align 16 .b8 s[512]; mov.u32 %r2, s; @%p1 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r9}, [%r2];",
    ] {
        let (_, text, what) = fault(&run, &format!("{some} {body}"));
        assert!(matches!(what, Fault::Mask { .. }), "{text}: {what}");
    }
    let (thread, _, what) = fault(&run, "setp.ge.u32 %p1, %t, 3; @%p1 bar.sync 0;");
    assert_eq!((thread[0], what), (3, Fault::Divided { live: u32::MAX, active: !7 }));
}

#[test]
fn deadlocks_and_endless_loops() {
    let run = Run { block: 64, words: 64, ..Run::default() };
    let (thread, text, what) = fault(&run, "setp.lt.u32 %p1, %t, 32; @%p1 bra A; bar.sync 1; bra B; A: bar.sync 2; B:");
    assert_eq!((thread, text.as_str()), ([0, 0, 0], "bar.sync 2;"));
    let told = what.to_string();
    assert!(told.contains("warp 0 waits at barrier 2") && told.contains("warp 1 waits at barrier 1"), "{told}");
    let (_, _, what) = fault(&run, "bar.sync 1, 96;");
    assert!(matches!(what, Fault::Deadlock(_)), "{what}");
    let (_, text, what) = fault(&run, "AGAIN: bra AGAIN;");
    assert!(matches!(what, Fault::Endless(_)), "{text}: {what}");
}

#[test]
fn races_on_shared_memory() {
    let run = Run { block: 64, words: 64, ..Run::default() };
    let body = |between: &str, by: u32| {
        format!(
            ".shared .align 4 .b8 s[256]; mov.u32 %r2, s; shl.b32 %r3, %t, 2; add.u32 %r4, %r2, %r3; xor.b32 %r3, %r3, {by};
            add.u32 %r5, %r2, %r3; st.shared.u32 [%r4], 1; bar.sync 0;
            st.shared.u32 [%r4], %t; {between} ld.shared.u32 %r9, [%r5]; st.global.u32 [%mine], %r9;"
        )
    };
    for (between, by, races) in [
        ("", 0, false),
        ("", 4, true),
        ("bar.warp.sync -1;", 4, false),
        ("bar.warp.sync -1;", 128, true),
        ("bar.sync 0;", 128, false),
    ] {
        match run.run(&body(between, by)) {
            Ok(got) => assert!(!races && got[0] == by / 4, "`{between}` {by}: {got:?}"),
            Err(error) => {
                let race = matches!(&error, Error::Run { fault, .. } if matches!(**fault, Fault::Race { .. }));
                assert!(races && race, "`{between}` {by}: {error}");
            }
        }
    }
}

#[test]
fn what_is_not_known_is_refused_when_it_is_read() {
    for (body, expected) in [
        ("frob.b32 %r1, %r2;", "an instruction that is not supported"),
        ("add.frob.s32 %r1, %r2, %r3;", "`.frob` of `add` is not supported"),
        ("add.s32 %r1, %r2;", "expected 2 sources, found 1"),
        ("add.s32 %r1, %r2, %nothing;", "`%nothing` is not known here"),
        ("bra NOWHERE;", "no label `NOWHERE`"),
        ("call printf, ();", "`printf` is no function with a body"),
        ("wgmma.fence.sync.aligned;", "an instruction that is not supported"),
        (
            "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%r1}, {%r1}, {%r1}, {%r1};",
            "this shape of mma is not supported",
        ),
        (
            "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {%r1}, {%r1}, {%r1}, {%r1, %r2};",
            "expected [2, 1, 1, 2] registers, found [1, 1, 1, 2]",
        ),
        ("ld.shared.u32 %r1, [k_in];", "`k_in` lies in another space"),
        ("{ .reg .b32 x; } mov.u32 x, 1;", "`x` is no register"),
    ] {
        match Module::parse(&crate::text("", body)).map(drop) {
            Err(Error::Parse { reason, text, .. }) => {
                assert_eq!(reason, expected, "{body}");
                assert!(body.contains(&text), "{text}");
            }
            other => panic!("{body}: {other:?}"),
        }
    }
    let again = ".func f() { call f; ret; }";
    let error = Module::parse(&crate::text(again, "call f;")).map(drop).expect_err("recursion");
    assert!(error.to_string().contains("`f` calls itself"), "{error}");
}

#[test]
fn launches_that_a_driver_refuses() {
    let text = ".version 8.4 .target sm_75 .address_size 64
        .entry k(.param .u64 a) .maxntid 64, 1, 1 { .shared .align 4 .b8 s[1024]; .reg .b32 %r; mov.u32 %r, s; ret; }
        .entry r() .reqntid 32, 2 { ret; }";
    let module = Module::parse(text).expect("parses");
    let good = Launch { kernel: "k", grid: [1; 3], block: [64, 1, 1], shared_bytes: 0, args: &[0; 8] };
    let mut memory = Memory::new();
    module.launch(&mut memory, &good).expect("fits");
    for (launch, expected) in [
        (Launch { kernel: "x", ..good }, "no such kernel"),
        (Launch { block: [65, 1, 1], ..good }, "compiled for at most"),
        (Launch { block: [0, 1, 1], ..good }, "1 to 1024"),
        (Launch { grid: [1, 70000, 1], ..good }, "a grid of"),
        (Launch { shared_bytes: 64 * 1024, ..good }, "66560 bytes of shared memory: sm_75 has 65536"),
        (Launch { args: &[0; 4], ..good }, "4 bytes of parameters: it takes 8"),
        (Launch { kernel: "r", args: &[], ..good }, "compiled for [32, 2, 1]"),
    ] {
        let error = module.launch(&mut memory, &launch).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
}
