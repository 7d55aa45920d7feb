#![no_main]

libfuzzer_sys::fuzz_target!(init: kedge_fuzz::begin(), |input: &[u8]| {
    kedge_fuzz::run(kedge_fuzz::targets::config, input);
});
