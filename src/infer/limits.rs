//! How much a server of text does at once, and what it takes for granted: flags under vLLM's names.

use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};
use kedge_engine::DecoderOptions;

/// As many answers as a server has open.
const ANSWERS_MAX: u64 = 256;

/// Settings of a model that makes text.
#[derive(Args, Clone, Debug)]
pub(super) struct LimitFlags {
    /// Answers that are computed at once, 256 at most; others wait
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..=ANSWERS_MAX))]
    max_num_seqs: usize,
    /// Tokens that prompt and answer may have together, where the model can do more (default: what the model can)
    #[arg(long, value_name = "TOKENS", value_parser = RangedU64ValueParser::<usize>::new().range(2..=u64::from(u32::MAX)))]
    max_model_len: Option<usize>,
    /// Memory for the keys and values of tokens, such as 512MiB (default: what --max-num-seqs answers of --max-model-len need,
    /// a quarter of the memory that weights leave at most); on a processor it is taken as it is used
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    kv_cache_memory: Option<u64>,
    /// What requests get that say nothing of temperature, max_tokens and so on: what the model's generation_config.json says,
    /// or none of it
    #[arg(long, value_enum, default_value_t = GenerationConfig::Auto)]
    generation_config: GenerationConfig,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GenerationConfig {
    Auto,
    None,
}

impl LimitFlags {
    pub(super) fn options(&self) -> DecoderOptions {
        DecoderOptions {
            running_max: self.max_num_seqs,
            context_max: self.max_model_len,
            kept_bytes: self.kv_cache_memory,
            heeds_defaults: self.generation_config == GenerationConfig::Auto,
            ..DecoderOptions::default()
        }
    }
}

/// So many bytes, as a number or with a unit.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" => 1,
        "KiB" | "Ki" => 1 << 10,
        "MiB" | "Mi" => 1 << 20,
        "GiB" | "Gi" => 1 << 30,
        "TiB" | "Ti" => 1 << 40,
        "KB" | "k" | "K" => 1000,
        "MB" | "M" => 1_000_000,
        "GB" | "G" => 1_000_000_000,
        "TB" | "T" => 1_000_000_000_000,
        _ => return Err("must be bytes, such as 536870912, 512MiB or 2GiB".into()),
    };
    let count = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).filter(|count| *count > 0);
    count.ok_or_else(|| "must be a whole number of bytes above zero, such as 512MiB".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        limits: LimitFlags,
    }

    fn read(flags: &[&str]) -> Result<DecoderOptions, String> {
        let read = Flags::try_parse_from([&["infer"], flags].concat());
        read.map(|flags| flags.limits.options()).map_err(|error| error.to_string())
    }

    #[test]
    fn flags_become_options_or_are_refused_by_name() {
        let usual = read(&[]).unwrap();
        assert_eq!(format!("{usual:?}"), format!("{:?}", DecoderOptions::default()));
        let all =
            ["--max-num-seqs=256", "--max-model-len=2048", "--kv-cache-memory=512MiB", "--generation-config=none"];
        let options = read(&all).unwrap();
        assert_eq!((options.running_max, options.context_max, options.kept_bytes), (256, Some(2048), Some(512 << 20)));
        assert!(usual.heeds_defaults && !options.heeds_defaults);
        for (flag, values) in [
            ("--max-num-seqs", &["0", "257", "many"][..]),
            ("--max-model-len", &["0", "1", "4294967296"]),
            ("--kv-cache-memory", &["0", "1.5GiB", "512 MiB", "MiB", "-1", "99999999TiB", "18446744073709551616"]),
            ("--generation-config", &["vllm"]),
        ] {
            for value in values {
                let refused = read(&[&format!("{flag}={value}")]).unwrap_err();
                assert!(refused.contains(flag), "{refused}");
            }
        }
        for (text, expected) in
            [("1", 1), ("2Gi", 2 << 30), ("3G", 3_000_000_000), ("4KiB", 4096), ("5TB", 5_000_000_000_000)]
        {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
    }
}
