//! The apiserver's certificates and the administrator's kubeconfig.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};

use crate::Error;

/// Paths of what the apiserver is started with.
#[derive(Clone, Debug)]
pub(crate) struct Pki {
    pub(crate) dir: PathBuf,
}

impl Pki {
    /// Makes everything that is not there yet; what exists is kept, so that old kubeconfigs stay valid.
    pub(crate) fn ensure(dir: &Path) -> Result<Self, Error> {
        let pki = Self { dir: dir.to_owned() };
        // Written last: its presence means that the rest is complete.
        if pki.admin_certificate().is_file() {
            return Ok(pki);
        }
        fs::create_dir_all(dir).map_err(Error::file("creating", dir))?;
        let ca = certificate_authority()?;
        write(&pki.ca(), &ca.pem())?;

        let mut serving = leaf("kube-apiserver", None, ExtendedKeyUsagePurpose::ServerAuth);
        serving.subject_alt_names = CertificateParams::new(vec![
            "127.0.0.1".to_owned(),
            "10.96.0.1".to_owned(),
            "localhost".to_owned(),
            "kubernetes".to_owned(),
            "kubernetes.default.svc".to_owned(),
        ])?
        .subject_alt_names;
        let key = KeyPair::generate()?;
        write(&pki.serving_key(), &key.serialize_pem())?;
        write(&pki.serving_certificate(), &serving.signed_by(&key, &ca)?.pem())?;

        let accounts = KeyPair::generate()?;
        write(&pki.account_key(), &accounts.serialize_pem())?;
        write(&pki.account_public_key(), &accounts.public_key_pem())?;

        let admin = leaf("admin", Some("system:masters"), ExtendedKeyUsagePurpose::ClientAuth);
        let key = KeyPair::generate()?;
        write(&pki.admin_key(), &key.serialize_pem())?;
        write(&pki.admin_certificate(), &admin.signed_by(&key, &ca)?.pem())?;
        Ok(pki)
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    pub(crate) fn serving_certificate(&self) -> PathBuf {
        self.dir.join("apiserver.crt")
    }

    pub(crate) fn serving_key(&self) -> PathBuf {
        self.dir.join("apiserver.key")
    }

    pub(crate) fn account_key(&self) -> PathBuf {
        self.dir.join("service-accounts.key")
    }

    pub(crate) fn account_public_key(&self) -> PathBuf {
        self.dir.join("service-accounts.pub")
    }

    fn admin_certificate(&self) -> PathBuf {
        self.dir.join("admin.crt")
    }

    fn admin_key(&self) -> PathBuf {
        self.dir.join("admin.key")
    }

    /// The administrator's kubeconfig for the apiserver at `port`; it holds its certificates and may be copied.
    pub(crate) fn kubeconfig(&self, port: u16) -> Result<String, Error> {
        let embed = |path: PathBuf| {
            fs::read(&path).map(|bytes| STANDARD.encode(bytes)).map_err(Error::file("reading", &path))
        };
        Ok(format!(
            "apiVersion: v1\nkind: Config\n\
             clusters:\n- name: basalt\n  cluster:\n    server: https://127.0.0.1:{port}\n    certificate-authority-data: {ca}\n\
             users:\n- name: admin\n  user:\n    client-certificate-data: {certificate}\n    client-key-data: {key}\n\
             contexts:\n- name: basalt\n  context:\n    cluster: basalt\n    user: admin\n\
             current-context: basalt\n",
            ca = embed(self.ca())?,
            certificate = embed(self.admin_certificate())?,
            key = embed(self.admin_key())?,
        ))
    }
}

/// Writes a file that only its owner can read.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(Error::file("writing", path))
}

fn certificate_authority() -> Result<CertifiedIssuer<'static, KeyPair>, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name("basalt-kube-fixture", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn leaf(common_name: &str, organization: Option<&str>, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common_name, organization);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    params
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}
