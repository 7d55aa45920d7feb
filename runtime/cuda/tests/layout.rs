//! Arguments as they are made against parameters as the PTX that ships declares them.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use kedge_cuda::{kernels, layouts};
use kedge_ptx::Module;

#[test]
fn arguments_are_what_the_kernels_declare() {
    for set in kernels::SETS {
        let mut declared = BTreeMap::new();
        for text in set.texts {
            for kernel in Module::parse(text).unwrap().kernels() {
                let params: Vec<(usize, usize)> =
                    kernel.params.iter().map(|param| (param.offset as usize, param.size as usize)).collect();
                assert!(declared.insert(kernel.name.to_string(), params).is_none(), "{} is there twice", kernel.name);
            }
        }
        let made: BTreeMap<String, Vec<(usize, usize)>> = layouts()
            .into_iter()
            .map(|(kernel, fields)| (kernel.into(), fields.iter().map(|(_, offset, size)| (*offset, *size)).collect()))
            .collect();
        assert_eq!(made.keys().collect::<Vec<_>>(), declared.keys().collect::<Vec<_>>(), "{}", set.name);
        for (kernel, fields) in &made {
            assert_eq!(fields, &declared[kernel], "{kernel} of {}", set.name);
        }
    }
}
