//! The certificate authority of one cluster, kept in a directory.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, pem::PemObject};

use crate::{Identity, IdentityError, role};

const CA_CERTIFICATE: &str = "ca.crt";
const CA_KEY: &str = "ca.key";

/// The three files that a process needs to speak TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate of the authority, PEM.
    pub ca: PathBuf,
    /// The own certificate, PEM.
    pub certificate: PathBuf,
    /// The own private key, PEM (PKCS 8), mode 0600.
    pub key: PathBuf,
}

/// A name under which a server is dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectName {
    /// An address.
    Ip(IpAddr),
    /// A DNS name.
    Dns(String),
}

/// Issues the certificates of one cluster.
#[derive(Debug)]
pub struct CertificateAuthority {
    directory: PathBuf,
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
}

impl CertificateAuthority {
    /// Opens the authority in `directory`, or makes one for the cluster of this name. The directory gets mode 0700, the key
    /// 0600. Fails when the directory holds the authority of another cluster.
    pub fn create_or_load(directory: &Path, cluster: &str) -> Result<Self, IdentityError> {
        let cluster = role::checked("cluster", cluster.to_owned())?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(file("create", directory))?;
        let key_path = directory.join(CA_KEY);
        let certificate_path = directory.join(CA_CERTIFICATE);
        let params = ca_params(&cluster)?;
        let key = if key_path.exists() && certificate_path.exists() {
            check_cluster(&certificate_path, &cluster)?;
            let text = fs::read_to_string(&key_path).map_err(file("read", &key_path))?;
            KeyPair::from_pem(&text)?
        } else {
            let key = KeyPair::generate()?;
            let certificate = params.self_signed(&key)?;
            write_private(&key_path, &key.serialize_pem())?;
            write_private(&certificate_path, &certificate.pem())?;
            key
        };
        Ok(Self { directory: directory.to_owned(), cluster, issuer: Issuer::new(params, key) })
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The certificate of the authority, PEM.
    pub fn certificate_path(&self) -> PathBuf {
        self.directory.join(CA_CERTIFICATE)
    }

    /// Issues a certificate and key into the authority's directory as `<role>-<name>.crt` and `.key`, replacing older ones:
    /// running processes pick them up by themselves. `names` are the addresses at which the holder is dialled, if it is.
    pub fn issue(
        &self,
        identity: &Identity,
        names: &[SubjectName],
    ) -> Result<CertificateFiles, IdentityError> {
        if identity.cluster() != self.cluster {
            return Err(IdentityError::OtherCluster {
                path: self.certificate_path(),
                found: self.cluster.clone(),
                expected: identity.cluster().to_owned(),
            });
        }
        let key = KeyPair::generate()?;
        let certificate = self.sign(identity, names, &key)?;
        let stem = format!("{}-{}", identity.role(), identity.name());
        let files = CertificateFiles {
            ca: self.certificate_path(),
            certificate: self.directory.join(format!("{stem}.crt")),
            key: self.directory.join(format!("{stem}.key")),
        };
        write_private(&files.key, &key.serialize_pem())?;
        write_private(&files.certificate, &certificate.pem())?;
        Ok(files)
    }

    fn sign(
        &self,
        identity: &Identity,
        names: &[SubjectName],
        key: &KeyPair,
    ) -> Result<Certificate, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = distinguished_name(&format!("{} {}", identity.role(), identity.name()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names.push(SanType::URI(identity.to_string().try_into()?));
        for name in names {
            params.subject_alt_names.push(match name {
                SubjectName::Ip(address) => SanType::IpAddress(*address),
                SubjectName::Dns(name) => SanType::DnsName(name.clone().try_into()?),
            });
        }
        Ok(params.signed_by(key, &self.issuer)?)
    }
}

/// The authority's own certificate. Its fields follow from the cluster's name alone, so that a loaded key signs under the
/// same issuer name as the certificate on disk says.
fn ca_params(cluster: &str) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(&format!("Basalt authority of {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names.push(SanType::URI(ca_uri(cluster).try_into()?));
    Ok(params)
}

fn ca_uri(cluster: &str) -> String {
    format!("basalt://{cluster}")
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn check_cluster(path: &Path, expected: &str) -> Result<(), IdentityError> {
    let content = || IdentityError::Content { path: path.to_owned(), expected: "an authority's certificate" };
    let certificate = CertificateDer::from_pem_file(path).map_err(|_| content())?;
    let certificate = webpki::EndEntityCert::try_from(&certificate).map_err(IdentityError::Parse)?;
    let found =
        certificate.valid_uri_names().find_map(|uri| uri.strip_prefix("basalt://")).ok_or_else(content)?;
    if found == expected {
        Ok(())
    } else {
        Err(IdentityError::OtherCluster {
            path: path.to_owned(),
            found: found.to_owned(),
            expected: expected.to_owned(),
        })
    }
}

/// Writes a file of mode 0600 so that readers see the old or the new content, never a part.
fn write_private(path: &Path, text: &str) -> Result<(), IdentityError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let write = || -> io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(file("write", path))
}

pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::File { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::Role;

    #[test]
    fn issued_certificates_state_the_identity_and_keys_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::create_or_load(directory.path(), "c1").unwrap();
        let identity = Identity::new("c1", Role::Node, "n1").unwrap();
        let files = authority.issue(&identity, &[SubjectName::Ip([127, 0, 0, 1].into())]).unwrap();
        let certificate = CertificateDer::from_pem_file(&files.certificate).unwrap();
        assert_eq!(Identity::of_certificate(&certificate).unwrap(), identity);
        for path in [&files.key, &directory.path().join(CA_KEY)] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn an_authority_is_of_one_cluster() {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::create_or_load(directory.path(), "c1").unwrap();
        let certificate = fs::read(authority.certificate_path()).unwrap();
        CertificateAuthority::create_or_load(directory.path(), "c1").unwrap();
        assert_eq!(fs::read(authority.certificate_path()).unwrap(), certificate);
        assert!(matches!(
            CertificateAuthority::create_or_load(directory.path(), "c2"),
            Err(IdentityError::OtherCluster { .. })
        ));
        let stranger = Identity::new("c2", Role::Cli, "cli").unwrap();
        assert!(matches!(authority.issue(&stranger, &[]), Err(IdentityError::OtherCluster { .. })));
    }

    #[test]
    fn the_authority_itself_has_no_identity() {
        let directory = tempfile::tempdir().unwrap();
        let authority = CertificateAuthority::create_or_load(directory.path(), "c1").unwrap();
        let certificate = CertificateDer::from_pem_file(authority.certificate_path()).unwrap();
        assert!(Identity::of_certificate(&certificate).is_err());
    }
}
