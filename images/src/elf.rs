//! The one thing that is asked of an ELF file: which program loads it.
//! (System V ABI, "Program Header"; only 64-bit little-endian files, which are the ones that this program can be.)

/// The type of the program header that names the loader.
const PT_INTERP: u32 = 3;
/// Far above what linkers write.
const HEADERS_MAX: usize = 256;

/// The path of the program that loads `file`; none when it needs none or is no such file.
pub(crate) fn interpreter(file: &[u8]) -> Option<&str> {
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let number = |at: usize, length: usize| -> Option<usize> {
        let mut bytes = [0; 8];
        bytes[..length].copy_from_slice(file.get(at..at.checked_add(length)?)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count.min(HEADERS_MAX) {
        let header = table.checked_add(index * size)?;
        if number(header, 4)? == PT_INTERP as usize {
            let (start, length) = (number(header + 8, 8)?, number(header + 32, 8)?);
            let text = file.get(start..start.checked_add(length)?)?;
            return std::str::from_utf8(text.strip_suffix(&[0]).unwrap_or(text)).ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "the test reads its own program")]
    fn this_test_has_a_loader_and_garbage_has_none() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        let loader = interpreter(&own).unwrap();
        assert!(loader.starts_with('/') && loader.contains("ld-"), "{loader}");
        for cut in [0, 5, 6, 40, 60, 70] {
            assert_eq!(interpreter(&own[..cut]), None);
        }
        let mut lying = own[..4096].to_vec();
        lying[32..40].fill(0xff);
        assert_eq!(interpreter(&lying), None);
    }
}
