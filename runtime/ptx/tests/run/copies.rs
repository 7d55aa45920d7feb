//! `cp.async`: bytes arrive when they are waited for, not before.

use crate::{Run, WRITE, numbers};
use kedge_ptx::{Error, Fault};

/// Two groups, each thread four bytes; then what is waited for, then the thread's word of each.
fn body(wait: &str, read: &str) -> String {
    format!(
        ".shared .align 16 .b8 s[256];
        mov.u32 %r2, s; shl.b32 %r3, %t, 2; add.u32 %r2, %r2, %r3;
        cp.async.ca.shared.global.L2::128B [%r2], [%at], 4; cp.async.commit_group;
        cp.async.ca.shared.global [%r2+128], [%at+128], 4; cp.async.commit_group;
        {wait} {read} {WRITE}"
    )
}

#[test]
fn groups_arrive_in_order() {
    let run = Run { input: numbers(64), ..Run::default() };
    let first = run.good(&body("cp.async.wait_group 1;", "ld.shared.u32 %r9, [%r2];"));
    assert_eq!(first, run.input[..32]);
    for wait in ["cp.async.wait_group 0;", "cp.async.wait_all;"] {
        assert_eq!(run.good(&body(wait, "ld.shared.u32 %r9, [%r2+128];")), run.input[32..]);
    }
}

#[test]
fn what_was_not_waited_for_is_not_there() {
    let run = Run { input: numbers(64), ..Run::default() };
    for (wait, read) in [("", "ld.shared.u32 %r9, [%r2];"), ("cp.async.wait_group 1;", "ld.shared.u32 %r9, [%r2+128];")]
    {
        let error = run.run(&body(wait, read)).expect_err("nothing is there");
        assert!(
            matches!(&error, Error::Run { fault, .. } if matches!(**fault, Fault::Uninitialised { .. })),
            "{error}"
        );
    }
    // Another thread's copy needs a barrier besides.
    let neighbour = "xor.b32 %r4, %r2, 4; ld.shared.u32 %r9, [%r4];";
    let error = run.run(&body("cp.async.wait_all;", neighbour)).expect_err("a race");
    assert!(
        matches!(&error, Error::Run { fault, .. } if matches!(**fault, Fault::Race { .. } | Fault::Uninitialised { .. })),
        "{error}"
    );
    let got = run.good(&body("cp.async.wait_all; bar.sync 0;", neighbour));
    assert_eq!(got[0], run.input[1]);
}

#[test]
fn a_shorter_source_is_filled_up_with_zeros() {
    let run = Run { input: numbers(32), ..Run::default() };
    let got = run.good(&format!(
        ".shared .align 16 .b8 s[128]; mov.u32 %r2, s; shl.b32 %r3, %t, 2; add.u32 %r2, %r2, %r3;
        and.b32 %r4, %t, 3;
        cp.async.ca.shared.global [%r2], [%at], 4, %r4; cp.async.commit_group; cp.async.wait_group 0;
        ld.shared.u32 %r9, [%r2]; {WRITE}"
    ));
    for (n, &got) in got.iter().enumerate() {
        assert_eq!(got, run.input[n] & ((1u64 << (8 * (n % 4))) - 1) as u32, "{n}");
    }
}
