//! What tests share. Files of old format versions, committed as text: hexadecimal bytes, 32 to a line.

/// The bytes of a fixture's text.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let value = |digit: u8| (digit as char).to_digit(16).expect("a hexadecimal digit") as u8;
    digits.chunks_exact(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect()
}

/// Writes a fixture into the source tree.
pub(crate) fn write(name: &str, bytes: &[u8]) {
    let lines = bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + "\n");
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    std::fs::write(path, lines.collect::<String>()).expect("the fixture is written");
}

/// How many seeds a crash test runs: `KVASIR_TEST_SEEDS`, or the default.
pub(crate) fn seeds(default: u64) -> u64 {
    std::env::var("KVASIR_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}
