//! Credentials on disk and in certificates, and what is refused as one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;

const NAME: NodeName = NodeName { cluster: 0xc1, node: 0x0dd };

fn made(authority: &Authority, name: NodeName) -> Credentials {
    let key = NodeKey::generate().unwrap();
    let certificate = authority.sign(&key.request().unwrap(), name, SystemTime::now(), CERTIFICATE_LIFE).unwrap();
    Credentials::new(key, certificate, vec![authority.certificate().clone()]).unwrap()
}

#[test]
fn credentials_and_the_authority_are_read_as_they_were_stored_and_keys_are_their_owners() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = Folder::new(scratch.path().join("identity"));
    assert!(folder.credentials().unwrap().is_none() && folder.authorities().unwrap().is_empty());

    let authority = Authority::create(NAME.cluster, SystemTime::now()).unwrap();
    folder.store_authorities([&authority]).unwrap();
    let credentials = made(&authority, NAME);
    folder.store(&credentials).unwrap();

    let read = folder.credentials().unwrap().unwrap();
    assert_eq!((read.name(), read.certificate()), (NAME, credentials.certificate()));
    // The authority that was read signs what the stored roots trust.
    let again = made(&folder.authorities().unwrap()[0], NAME);
    assert_eq!(fingerprint(&again.roots()[0]), fingerprint(authority.certificate()));
    for key in ["node.key", "ca.key"] {
        let mode = std::fs::metadata(folder.path().join(key)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{key}");
    }
    assert_eq!(std::fs::metadata(folder.path()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = Folder::new(scratch.path());
    folder.store(&made(&Authority::create(1, SystemTime::now()).unwrap(), NAME)).unwrap();
    std::fs::set_permissions(scratch.path().join("node.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let error = folder.credentials().unwrap_err().to_string();
    assert!(error.contains("node.key") && error.contains("mode 640") && error.contains("chmod 600"), "{error}");
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = Folder::new(scratch.path());
    let authority = Authority::create(1, SystemTime::now()).unwrap();
    folder.store(&made(&authority, NAME)).unwrap();
    let other = made(&authority, NAME);
    std::fs::write(scratch.path().join("node.key"), other.key().pem()).unwrap();
    let error = folder.credentials().unwrap_err().to_string();
    assert!(error.contains("not for the node's key"), "{error}");
    std::fs::write(scratch.path().join("ca.crt"), "nothing").unwrap();
    let error = folder.credentials().unwrap_err().to_string();
    assert!(error.contains("ca.crt") && error.contains("no certificate"), "{error}");
    std::fs::write(scratch.path().join("ca.crt"), vec![b' '; 300 * 1024]).unwrap();
    let error = folder.credentials().unwrap_err().to_string();
    assert!(error.contains("307200 bytes"), "{error}");
}

#[test]
fn a_certificate_carries_the_name_it_was_signed_for_and_nothing_from_the_request() {
    let authority = Authority::create(NAME.cluster, SystemTime::now()).unwrap();
    // A request that asks to be another node, and an authority.
    let pair = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["n0.c0.kvasir".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let request = params.serialize_request(&pair).unwrap();
    let signed = authority.sign(request.der(), NAME, SystemTime::now(), CERTIFICATE_LIFE).unwrap();
    assert_eq!(NodeName::of(&signed).unwrap(), NAME);
    let parsed = webpki::EndEntityCert::try_from(&signed).unwrap();
    assert_eq!(parsed.valid_dns_names().collect::<Vec<_>>(), [NAME.dns()]);
    use x509_parser::prelude::FromDer;
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&signed).unwrap();
    assert!(!parsed.is_ca());
}

#[test]
fn an_authoritys_key_of_another_authority_is_refused() {
    let [one, other] = [1, 2].map(|cluster| Authority::create(cluster, SystemTime::now()).unwrap());
    let error = Authority::load(one.certificate().clone(), &other.key_pem()).unwrap_err().to_string();
    assert!(error.contains("not the key of the authority's certificate"), "{error}");
}

#[test]
fn a_certificate_is_due_after_two_thirds_of_its_life() {
    let authority = Authority::create(1, SystemTime::now()).unwrap();
    let credentials = made(&authority, NAME);
    let now = SystemTime::now();
    assert!(!credentials.is_due(now + CERTIFICATE_LIFE / 2));
    assert!(credentials.is_due(now + CERTIFICATE_LIFE * 7 / 10));
    assert!(credentials.not_after() > now + CERTIFICATE_LIFE - Duration::from_secs(60));
}

proptest! {
    #[test]
    fn a_name_is_read_as_it_is_written_and_nothing_else_is(cluster: u64, node: u64, junk in "[a-z0-9:/]{0,60}") {
        let name = NodeName { cluster, node };
        prop_assert_eq!(NodeName::parse(&name.uri()).unwrap(), name);
        let longer = name.uri() + &junk + "0";
        prop_assert!(NodeName::parse(&longer).is_err());
        prop_assert!(NodeName::parse(&junk).is_err());
    }

    #[test]
    fn any_bytes_are_refused_as_a_request(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let authority = Authority::create(1, SystemTime::now()).unwrap();
        prop_assert!(authority.sign(&bytes, NAME, SystemTime::now(), CERTIFICATE_LIFE).is_err());
    }
}
