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
async fn where_others_could_have_read_the_key_nothing_cached_is_believed() {
    let engine = wasm::engine().unwrap();
    let component = Bytes::from(reactor("(call $ok)"));
    let digest = Digest::from(Sha256::digest(&component));
    let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    type Widen<'a> = (&'a str, &'a dyn Fn(&Path));
    let widen: [Widen<'_>; 3] = [
        ("the folder was open", &|dir| chmod(dir, 0o755)),
        ("the key was readable", &|dir| chmod(&dir.join(KEY), 0o644)),
        ("the key is a link", &|dir| {
            fs::rename(dir.join(KEY), dir.join("other")).unwrap();
            std::os::unix::fs::symlink("other", dir.join(KEY)).unwrap();
        }),
    ];
    for (what, widen) in widen {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        Compiler::start(engine.clone(), &folder).unwrap().compile(digest, component.clone()).await.unwrap();
        let cache = Cache::open(&folder, &engine).unwrap();
        assert!(cache.read(&digest).is_some(), "{what}: kept while it is private");
        widen(&folder);
        let reopened = Cache::open(&folder, &engine).unwrap();
        assert!(cached(&folder).is_empty() && reopened.read(&digest).is_none(), "{what}");
        assert_ne!(cache.key, reopened.key, "{what}");
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700, "{what}");
        assert_eq!(fs::symlink_metadata(folder.join(KEY)).unwrap().mode() & 0o777, 0o600, "{what}");
    }
}

#[tokio::test]
async fn code_is_found_by_its_digest_alone_and_that_of_removed_plugins_goes() {
    let dir = tempfile::tempdir().unwrap();
    let compiler = Compiler::start(wasm::engine().unwrap(), dir.path()).unwrap();
    let component = Bytes::from(reactor("(call $ok)"));
    let digest = Digest::from(Sha256::digest(&component));
    assert!(compiler.cached(digest).await.unwrap().is_none());
    compiler.compile(digest, component.clone()).await.unwrap();
    assert!(compiler.cached(digest).await.unwrap().is_some());
    compiler.keep_only(BTreeSet::from([digest]));
    assert!(compiler.cached(digest).await.unwrap().is_some());
    compiler.keep_only(BTreeSet::from([[9; 32]]));
    assert!(compiler.cached(digest).await.unwrap().is_none());
    assert!(cached(dir.path()).is_empty());
    let Err(error) = compiler.compile([9; 32], component).await else { panic!("it compiled") };
    assert!(error.contains("digest differs"), "{error}");
}

#[tokio::test]
async fn what_does_not_compile_is_an_error_and_the_next_component_does() {
    let dir = tempfile::tempdir().unwrap();
    let compiler = Compiler::start(wasm::engine().unwrap(), dir.path()).unwrap();
    let broken = Bytes::from_static(b"\0asm\x0d\0\x01\0\xff");
    let Err(error) = compiler.compile(Sha256::digest(&broken).into(), broken).await else { panic!("it compiled") };
    assert!(error.contains("does not compile"), "{error}");
    let component = Bytes::from(reactor("(call $ok)"));
    compiler.compile(Sha256::digest(&component).into(), component).await.unwrap();
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}
