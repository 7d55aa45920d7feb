//! Functions of the device.

use crate::{Run, WRITE};

/// `twice_if(x, n)`: doubles x n times, differently long for each lane.
const FUNCTIONS: &str = "
.func (.param .b32 r) inner(.param .b32 x) {
.reg .b32 %a;
ld.param.u32 %a, [x]; add.u32 %a, %a, %a; st.param.u32 [r+0], %a; ret;
}
.func (.param .b32 r) outer(.param .b32 x, .param .align 4 .b8 n[8]) {
.reg .b32 %a<4>; .reg .pred %p;
ld.param.u32 %a1, [x]; ld.param.u32 %a2, [n+4];
AGAIN: setp.eq.u32 %p, %a2, 0; @%p bra DONE;
{ .reg .b32 t; .param .b32 p0; st.param.b32 [p0+0], %a1; .param .b32 q; call.uni (q), inner, (p0); ld.param.b32 %a1, [q+0]; }
sub.u32 %a2, %a2, 1; bra AGAIN;
DONE: st.param.u32 [r], %a1; ret;
}";

#[test]
fn arguments_results_and_lanes_that_return_at_different_times() {
    let body = "
        and.b32 %r2, %t, 7; mov.u32 %r3, 5;
        setp.eq.u32 %p1, %t, 9; @%p1 bra SKIP;
        { .param .b32 a; st.param.b32 [a], %r3; .param .align 4 .b8 b[8]; st.param.b32 [b+4], %r2; .param .b32 c;
          call.uni (c), outer, (a, b); ld.param.b32 %r3, [c]; }
        SKIP: activemask.b32 %r4; setp.ne.u32 %p2, %r4, -1; @%p2 trap; mov.u32 %r9, %r3;";
    let got = Run { before: FUNCTIONS, ..Run::default() }.good(&format!("{body}{WRITE}"));
    assert_eq!(got, (0..32).map(|t| if t == 9 { 5 } else { 5 << (t & 7) }).collect::<Vec<u32>>());
}

#[test]
fn lanes_that_exit_inside_of_a_function() {
    let before = "
        .func leave() { exit; }
        .func (.param .b32 r) both(.param .b32 x) {
        .reg .b32 %a; .reg .pred %p;
        ld.param.u32 %a, [x]; setp.lt.u32 %p, %a, 4; @%p bra GO; bra STAY;
        GO: call leave; bra STAY;
        STAY: { .param .b32 p0; st.param.b32 [p0], %a; .param .b32 q; call (q), add, (p0); ld.param.b32 %a, [q]; }
        st.param.u32 [r], %a; ret; }
        .func (.param .b32 r) add(.param .b32 x) { .reg .b32 %a; ld.param.u32 %a, [x]; add.u32 %a, %a, 100; st.param.u32 [r], %a; ret; }";
    let body = "{ .param .b32 a; st.param.b32 [a], %t; .param .b32 c; call (c), both, (a); ld.param.b32 %r9, [c]; }";
    let got = Run { before, ..Run::default() }.good(&format!("{body}{WRITE}"));
    assert_eq!(got, (0..32).map(|t| if t < 4 { 0 } else { t + 100 }).collect::<Vec<u32>>());
}
