//! A range of IPv4 addresses in the notation `10.42.0.0/24`.
//!
//! The address is always the first of its range. IPv6 is refused where a range is read, with words that say so.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::NetworkError;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Cidr {
    first: u32,
    prefix: u8,
}

impl Ipv4Cidr {
    /// The range of `prefix` bits that `address` lies in.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self, NetworkError> {
        if prefix > 32 {
            return Err(NetworkError::Invalid(format!("{address}/{prefix}: a prefix has at most 32 bits")));
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Ok(Self { first: u32::from(address) & mask, prefix })
    }

    /// The number of leading bits that all its addresses share.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// How many addresses there are.
    pub fn size(self) -> u64 {
        1 << (32 - self.prefix)
    }

    /// The address `offset` after the first; none outside the range.
    pub fn nth(self, offset: u64) -> Option<Ipv4Addr> {
        let offset = u32::try_from(offset).ok().filter(|offset| u64::from(*offset) < self.size())?;
        Some(Ipv4Addr::from(self.first + offset))
    }

    /// How far `address` is from the first; none outside the range.
    pub fn offset(self, address: Ipv4Addr) -> Option<u32> {
        let offset = u32::from(address).checked_sub(self.first)?;
        (u64::from(offset) < self.size()).then_some(offset)
    }

    /// Whether `address` lies in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.offset(address).is_some()
    }
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix)
    }
}

impl FromStr for Ipv4Cidr {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let fail =
            |why: &str| NetworkError::Invalid(format!("{text:?} is not an IPv4 range such as 10.42.0.0/24{why}"));
        let (address, prefix) = text.split_once('/').ok_or_else(|| fail(""))?;
        if address.contains(':') {
            return Err(fail(": IPv6 is not supported yet"));
        }
        let address: Ipv4Addr = address.parse().map_err(|_| fail(""))?;
        let range = Self::new(address, prefix.parse().map_err(|_| fail(""))?)?;
        if range.nth(0) == Some(address) { Ok(range) } else { Err(fail(&format!(": do you mean {range}?"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_or_refused_with_the_reason() {
        let check = |text: &str, expected: &str| {
            let got = match text.parse::<Ipv4Cidr>() {
                Ok(range) => format!("{range} {}", range.size()),
                Err(error) => error.to_string(),
            };
            assert!(got.contains(expected), "{text}: {got}");
        };
        check("10.42.0.0/24", "10.42.0.0/24 256");
        check("0.0.0.0/0", "0.0.0.0/0 4294967296");
        check("10.42.0.7/32", "10.42.0.7/32 1");
        check("10.42.0.7/24", "do you mean 10.42.0.0/24?");
        check("fd00::/64", "IPv6 is not supported");
        check("10.42.0.0/33", "at most 32");
        check("10.42.0.0", "not an IPv4 range");
        check("", "not an IPv4 range");
    }

    #[test]
    fn offsets_and_addresses_are_each_others_inverse() {
        let range: Ipv4Cidr = "10.42.3.0/24".parse().unwrap();
        for offset in 0..256 {
            assert_eq!(range.offset(range.nth(offset).unwrap()).map(u64::from), Some(offset));
        }
        assert_eq!(range.nth(256), None);
        assert!(!range.contains("10.42.4.0".parse().unwrap()));
        assert!(!range.contains("10.42.2.255".parse().unwrap()));
    }
}
