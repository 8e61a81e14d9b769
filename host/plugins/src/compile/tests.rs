//! The cache of compiled code: what it trusts and what it does not.

use super::*;
use crate::testing::reactor;

fn cached(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn compiled_code_is_kept_and_a_changed_file_is_compiled_again() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    let engine = wasm::engine().unwrap();
    let component = Bytes::from(reactor("(call $ok)"));
    let digest: [u8; 32] = Sha256::digest(&component).into();
    let compiler = Compiler::start(engine.clone(), &folder).unwrap();
    compiler.compile(digest, component.clone()).await.unwrap();
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let files = cached(&folder);
    assert_eq!(files.len(), 1);
    let good = fs::read(&files[0]).unwrap();

    let cache = Cache::open(&folder, &engine).unwrap();
    assert!(cache.read(&digest).is_some());
    for (what, bytes) in [
        ("a flipped bit in the code", flipped(&good, 100)),
        ("a flipped bit in the tag", flipped(&good, good.len() - 1)),
        ("cut short", good[..good.len() - 1].to_vec()),
        ("empty", Vec::new()),
    ] {
        fs::write(&files[0], &bytes).unwrap();
        assert!(cache.read(&digest).is_none(), "{what}");
        compiler.compile(digest, component.clone()).await.unwrap();
        assert_eq!(fs::read(&files[0]).unwrap().len(), good.len(), "{what}: written again");
    }

    let other = [7; 32];
    fs::write(folder.join(cache.name(&other)), &good).unwrap();
    assert!(cache.read(&other).is_none(), "code under another component's name");
}

#[tokio::test]
async fn code_of_another_engine_is_dropped_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let engine = wasm::engine().unwrap();
    let stale = dir.path().join(format!("{}-{}.{EXTENSION}", hex(&[1; 32]), hex(&[2; 16])));
    fs::write(&stale, b"old").unwrap();
    Cache::open(dir.path(), &engine).unwrap();
    assert!(!stale.exists());
}

#[tokio::test]
async fn what_does_not_compile_is_an_error_and_the_next_component_does() {
    let dir = tempfile::tempdir().unwrap();
    let compiler = Compiler::start(wasm::engine().unwrap(), dir.path()).unwrap();
    let Err(error) = compiler.compile([0; 32], Bytes::from_static(b"\0asm\x0d\0\x01\0\xff")).await else {
        panic!("it compiled")
    };
    assert!(error.contains("does not compile"), "{error}");
    let component = Bytes::from(reactor("(call $ok)"));
    compiler.compile([1; 32], component).await.unwrap();
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}
