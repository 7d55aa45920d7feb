//! Lanes that go different ways and meet again. That they met is seen by `activemask`.

use crate::{Run, WRITE, numbers};

const ALL: u32 = u32::MAX;

fn lanes(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}

#[test]
fn if_and_else() {
    let body = "
        setp.lt.u32 %p1, %t, 10;
        @%p1 bra THEN;
        activemask.b32 %r9;
        bra.uni JOIN;
        THEN: activemask.b32 %r9; add.u32 %r9, %r9, 1;
        JOIN: activemask.b32 %r8;
        setp.ne.u32 %p2, %r8, -1;
        @%p2 trap;";
    let got = Run::default().good(&format!("{body}{WRITE}"));
    assert_eq!(got, lanes(|t| if t < 10 { 0x3ff + 1 } else { ALL << 10 }));
}

#[test]
fn a_loop_whose_lanes_leave_one_by_one() {
    let body = "
        mov.u32 %r9, 0; mov.u32 %r2, 0;
        LOOP: activemask.b32 %r3; popc.b32 %r3, %r3; add.u32 %r9, %r9, %r3;
        add.u32 %r2, %r2, 1;
        setp.le.u32 %p1, %r2, %t;
        @%p1 bra LOOP;
        activemask.b32 %r8; setp.ne.u32 %p2, %r8, -1; @%p2 trap;";
    let got = Run::default().good(&format!("{body}{WRITE}"));
    assert_eq!(got, lanes(|t| (0..=t).map(|round| 32 - round).sum()));
}

#[test]
fn nested_with_continue_and_break() {
    let body = "
        ld.global.u32 %r2, [%at]; and.b32 %r2, %r2, 0xffff; mov.u32 %r9, 0; mov.u32 %r3, 0;
        LOOP: setp.ge.u32 %p1, %r3, 40; @%p1 bra DONE;
        add.u32 %r3, %r3, 1;
        and.b32 %r4, %r2, 1; shr.u32 %r2, %r2, 1; setp.eq.u32 %p2, %r4, 0; @%p2 bra LOOP;
        mov.u32 %r5, 0;
        INNER: add.u32 %r9, %r9, %r3; add.u32 %r5, %r5, 1; and.b32 %r6, %r3, 3; setp.lt.u32 %p3, %r5, %r6; @%p3 bra INNER;
        setp.gt.u32 %p4, %r9, 60; @%p4 bra DONE;
        bra LOOP;
        DONE: shfl.sync.bfly.b32 %r7, %r9, 0, 0x1f, -1;";
    let input = numbers(32);
    let got = Run { input: input.clone(), ..Run::default() }.good(&format!("{body}{WRITE}"));
    let expected = lanes(|t| {
        let (mut bits, mut sum) = (input[t as usize] & 0xffff, 0);
        for round in 1..=40 {
            let bit = bits & 1;
            bits >>= 1;
            if bit == 0 {
                continue;
            }
            sum += round * (round & 3).max(1);
            if sum > 60 {
                break;
            }
        }
        sum
    });
    assert_eq!(got, expected);
}

#[test]
fn early_exit_of_some_lanes_and_predicated_instructions() {
    let body = "
        setp.ge.u32 %p1, %t, 5;
        @%p1 exit;
        activemask.b32 %r9;
        setp.eq.u32 %p2, %t, 3;
        @%p2 mov.u32 %r9, 77;
        bar.sync 0;";
    let got = Run::default().good(&format!("{body}{WRITE}"));
    assert_eq!(
        got,
        lanes(|t| if t == 3 {
            77
        } else if t < 5 {
            0x1f
        } else {
            0
        })
    );
}

#[test]
fn jumps_by_a_table() {
    let body = "
        and.b32 %r2, %t, 3;
        TABLE: .branchtargets A, B, A, C;
        brx.idx %r2, TABLE;
        A: activemask.b32 %r9; bra.uni JOIN;
        B: mov.u32 %r9, 1; bra.uni JOIN;
        C: mov.u32 %r9, 3;
        JOIN: activemask.b32 %r8; setp.ne.u32 %p2, %r8, -1; @%p2 trap;";
    let got = Run::default().good(&format!("{body}{WRITE}"));
    assert_eq!(got, lanes(|t| [0x5555_5555, 1, 0x5555_5555, 3][t as usize % 4]));
}

#[test]
fn blocks_in_no_order() {
    let body = "
        setp.lt.u32 %p1, %t, 16; bra START;
        END: activemask.b32 %r9; bra WRITE;
        ODD: mov.u32 %r2, 1; bra END;
        START: @%p1 bra ODD; mov.u32 %r2, 2; bra END;
        WRITE: add.u32 %r9, %r9, %r2;";
    let got = Run::default().good(&format!("{body}{WRITE}"));
    assert_eq!(got, lanes(|t| if t < 16 { 0 } else { 1 }));
}

#[test]
fn grids_blocks_and_a_warp_that_is_not_full() {
    let got = Run { grid: 3, block: 40, words: 120, ..Run::default() }.good(
        "mov.u32 %r9, %ctaid.x; mov.u32 %r2, %warpid; mov.u32 %r3, %laneid; activemask.b32 %r4; popc.b32 %r4, %r4;
        mad.lo.u32 %r9, %r9, 10, %r2; mad.lo.u32 %r9, %r9, 100, %r3; mad.lo.u32 %r9, %r9, 100, %r4;
        st.global.u32 [%mine], %r9;",
    );
    for (n, &got) in got.iter().enumerate() {
        let (block, thread) = (n as u32 / 40, n as u32 % 40);
        let lanes = if thread < 32 { 32 } else { 8 };
        assert_eq!(got, ((block * 10 + thread / 32) * 100 + thread % 32) * 100 + lanes, "{n}");
    }
}
