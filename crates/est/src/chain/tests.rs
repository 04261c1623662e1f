use proptest::prelude::*;
use rcgen::{
    BasicConstraints as Constraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints as Names,
};
use time::ext::NumericalDuration as _;

use super::*;

struct Made {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - 2.days(), now + 2.days());
    params
}

fn ca(name: &str, path_len: Option<u8>) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(path_len.map_or(Constraints::Unconstrained, Constraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    params
}

fn made(params: CertificateParams, issuer: Option<&Made>) -> Made {
    let key = KeyPair::generate().unwrap();
    let certificate = match issuer {
        Some(issuer) => params.signed_by(&key, &issuer.issuer),
        None => params.self_signed(&key),
    };
    let certificate = Certificate::from_der(certificate.unwrap().der()).unwrap();
    Made { certificate, issuer: Issuer::new(params, key) }
}

fn judged(leaf: &Made, answer: &[&Made], roots: &[&Made]) -> Result<Vec<Certificate>, AnswerError> {
    let all = |made: &[&Made]| made.iter().map(|it| it.certificate.clone()).collect::<Vec<_>>();
    let (answer, roots) = (all(answer), all(roots));
    let pool = Pool { sent: &[], roots: &roots, named: "the roots" };
    checked(leaf.certificate.public_key(), &answer, pool, OffsetDateTime::now_utc())
}

fn reason(result: Result<Vec<Certificate>, AnswerError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_chain_is_put_in_order_whatever_order_it_came_in() {
    let root = made(ca("root", None), None);
    let upper = made(ca("upper", None), Some(&root));
    let lower = made(ca("lower", Some(0)), Some(&upper));
    let leaf = made(named("leaf"), Some(&lower));
    let expected = [&leaf, &lower, &upper, &root].map(|it| it.certificate.clone());
    for answer in [[&upper, &leaf, &lower], [&lower, &upper, &leaf]] {
        assert_eq!(judged(&leaf, &answer, &[&root]).unwrap(), expected);
    }
    // A root in the middle of a path ends it.
    assert_eq!(judged(&leaf, &[&leaf], &[&lower]).unwrap(), expected[..2]);
}

#[test]
fn a_ca_is_taken_for_a_leaf_where_its_issuer_may_have_cas_below() {
    let root = made(ca("root", None), None);
    let upper = made(ca("upper", Some(1)), Some(&root));
    let edge = made(ca("edge", Some(0)), Some(&upper));
    assert_eq!(judged(&edge, &[&edge, &upper], &[&root]).unwrap().len(), 3);
    let lowest = made(ca("lowest", Some(0)), Some(&root));
    let edge = made(ca("edge", Some(0)), Some(&lowest));
    let said = reason(judged(&edge, &[&edge, &lowest], &[&root]));
    assert!(said.contains("may not have so many CAs below it"), "{said}");
}

#[test]
fn a_certificate_of_another_key_or_two_of_ours_are_refused() {
    let root = made(ca("root", None), None);
    let leaf = made(named("leaf"), Some(&root));
    let other = made(named("leaf"), Some(&root));
    assert_eq!(judged(&leaf, &[&other], &[&root]), Err(AnswerError::OtherKey));
    let mut again = named("leaf");
    again.serial_number = Some(7u64.into());
    let again = again.signed_by(leaf.issuer.key(), &root.issuer).unwrap();
    let again = Made {
        certificate: Certificate::from_der(again.der()).unwrap(),
        issuer: Issuer::new(named("leaf"), KeyPair::generate().unwrap()),
    };
    assert_eq!(judged(&leaf, &[&leaf, &again], &[&root]), Err(AnswerError::Ambiguous));
    assert_eq!(judged(&leaf, &[&leaf, &leaf], &[&root]).unwrap().len(), 2);
}

#[test]
fn what_is_not_valid_now_is_refused_with_the_time() {
    let root = made(ca("root", None), None);
    let now = OffsetDateTime::now_utc();
    let mut params = named("leaf");
    (params.not_before, params.not_after) = (now - 2.days(), now - 1.days());
    let old = made(params, Some(&root));
    assert!(matches!(judged(&old, &[&old], &[&root]), Err(AnswerError::Expired(_))));
    let mut params = named("leaf");
    params.not_before = now + 1.hours();
    let young = made(params, Some(&root));
    assert!(matches!(judged(&young, &[&young], &[&root]), Err(AnswerError::NotYetValid(_))));
    // A server whose clock is a little ahead is no reason to be without a certificate.
    let mut params = named("leaf");
    params.not_before = now + 100.seconds();
    let fresh = made(params, Some(&root));
    assert_eq!(judged(&fresh, &[&fresh], &[&root]).unwrap().len(), 2);
    let mut params = ca("upper", None);
    params.not_after = now - 1.hours();
    let upper = made(params, Some(&root));
    let leaf = made(named("leaf"), Some(&upper));
    let said = reason(judged(&leaf, &[&leaf, &upper], &[&root]));
    assert!(said.contains("a certificate above it has expired"), "{said}");
}

#[test]
fn what_does_not_chain_is_refused_with_the_reason() {
    let root = made(ca("root", None), None);
    let leaf = made(named("leaf"), Some(&root));
    let stranger = made(ca("stranger", None), None);
    let said = reason(judged(&leaf, &[&leaf], &[&stranger]));
    assert!(said.contains("does not chain to the roots: no certificate that was sent"), "{said}");
    assert!(reason(judged(&leaf, &[&leaf], &[])).contains("does not chain"));
    // The server's own root is in its answer, and is not believed for that.
    let said = reason(judged(&leaf, &[&leaf, &root], &[&stranger]));
    assert!(said.contains("does not chain"), "{said}");
    // Another root of the same name and key identifier did not sign it.
    let mut same = ca("root", None);
    same.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![7]);
    let (first, second) = (made(same.clone(), None), made(same, None));
    let leaf = made(named("leaf"), Some(&first));
    let said = reason(judged(&leaf, &[&leaf], &[&second]));
    assert!(said.contains("not signed by the one that it names"), "{said}");
    assert_eq!(judged(&leaf, &[&leaf], &[&second, &first]).unwrap().len(), 2);
}

#[test]
fn what_is_no_ca_issues_nothing() {
    let root = made(ca("root", None), None);
    let end = made(named("end"), Some(&root));
    let leaf = made(named("leaf"), Some(&end));
    let said = reason(judged(&leaf, &[&leaf, &end], &[&root]));
    assert!(said.contains("a certificate above it is not a CA"), "{said}");
    let mut params = ca("mute", None);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let mute = made(params, Some(&root));
    let leaf = made(named("leaf"), Some(&mute));
    let said = reason(judged(&leaf, &[&leaf, &mute], &[&root]));
    assert!(said.contains("may not sign certificates by its key usage"), "{said}");
}

#[test]
fn a_name_outside_of_its_issuers_constraints_is_refused() {
    let root = made(ca("root", None), None);
    let mut params = ca("upper", None);
    let plant = rcgen::GeneralSubtree::DnsName("plant7.example".to_owned());
    params.name_constraints =
        Some(Names { permitted_subtrees: vec![plant], excluded_subtrees: Vec::new() });
    let upper = made(params, Some(&root));
    for (name, fits) in [("press.plant7.example", true), ("press.plant8.example", false)] {
        let mut params = named("leaf");
        params.subject_alt_names = vec![rcgen::SanType::DnsName(name.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = made(params, Some(&upper));
        assert_eq!(judged(&leaf, &[&leaf, &upper], &[&root]).is_ok(), fits, "{name}");
    }
}

#[test]
fn circles_and_long_chains_end() {
    let root = made(ca("root", None), None);
    let mut chain = vec![made(ca("0", None), Some(&root))];
    for at in 1..12 {
        chain.push(made(ca(&at.to_string(), None), chain.last()));
    }
    let leaf = made(named("leaf"), chain.last());
    let answer: Vec<_> = chain.iter().chain([&leaf]).collect();
    let said = reason(judged(&leaf, &answer, &[&root]));
    assert!(said.contains("the path to one of them is too long"), "{said}");
    // Twenty CAs of one name that all could have issued each other.
    let mut same = ca("same", None);
    same.use_authority_key_identifier_extension = false;
    same.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![7]);
    let all: Vec<_> = (0..20).map(|_| made(same.clone(), None)).collect();
    let leaf = made(named("leaf"), Some(&all[19]));
    let answer: Vec<_> = all.iter().chain([&leaf]).collect();
    assert!(reason(judged(&leaf, &answer, &[&root])).contains("does not chain"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// One byte of a certificate that was issued is another: it is not taken.
    #[test]
    fn a_certificate_that_was_changed_is_never_taken(at in 0usize..400, flip in 1u8..) {
        let root = made(ca("root", None), None);
        let leaf = made(named("leaf"), Some(&root));
        let mut der = leaf.certificate.der().to_vec();
        let at = at % der.len();
        der[at] ^= flip;
        let Some(changed) = Certificate::from_der(&der) else { return Ok(()) };
        let roots = [root.certificate];
        let pool = Pool { sent: &[], roots: &roots, named: "the roots" };
        let key = leaf.certificate.public_key();
        prop_assert!(checked(key, &[changed], pool, OffsetDateTime::now_utc()).is_err());
    }
}
