//! TLS configurations of one process, loaded from its files and again when the files change.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};

use crate::{CertificateFiles, Identity, IdentityError, Role, authority::file};

/// Application protocol of gRPC (RFC 7540, section 3.3).
const ALPN_H2: &[u8] = b"h2";

/// The certificates of one process. Connections that are open keep theirs; new ones get the newest.
#[derive(Debug)]
pub struct Credentials {
    files: CertificateFiles,
    identity: Identity,
    server: ArcSwap<ServerConfig>,
    client: ArcSwap<ClientConfig>,
    /// The bytes that are in force, to see changes; held for the time of a reload.
    loaded: Mutex<Bytes>,
}

#[derive(Debug, PartialEq, Eq)]
struct Bytes {
    ca: Vec<u8>,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Credentials {
    /// Reads the files and builds both configurations: as a server that demands a client certificate of the same authority,
    /// and as a client that talks only to members of the same cluster.
    pub fn load(files: &CertificateFiles) -> Result<Arc<Self>, IdentityError> {
        let bytes = Bytes::read(files)?;
        let (identity, server, client) = build(files, &bytes)?;
        Ok(Arc::new(Self {
            files: files.clone(),
            identity,
            server: ArcSwap::from_pointee(server),
            client: ArcSwap::from_pointee(client),
            loaded: Mutex::new(bytes),
        }))
    }

    /// Who this process is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The configuration for the next connection that is accepted.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server.load_full()
    }

    /// The configuration for the next connection that is opened.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        self.client.load_full()
    }

    /// Loads the files again if they changed; true if they did. On an error the old ones stay in force.
    pub fn reload_if_changed(&self) -> Result<bool, IdentityError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = Bytes::read(&self.files)?;
        if *loaded == bytes {
            return Ok(false);
        }
        let (identity, server, client) = build(&self.files, &bytes)?;
        if identity != self.identity {
            return Err(IdentityError::Content {
                path: self.files.certificate.clone(),
                expected: "the identity that this process was started with",
            });
        }
        self.server.store(Arc::new(server));
        self.client.store(Arc::new(client));
        *loaded = bytes;
        Ok(true)
    }

    /// Looks at the files every `interval` for as long as the process runs. The caller spawns it.
    pub async fn follow_files(self: Arc<Self>, interval: Duration) {
        let mut ticks = tokio::time::interval(interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.reload_if_changed() {
                Ok(true) => tracing::info!(identity = %self.identity, "certificates were reloaded"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, identity = %self.identity, "certificates were not reloaded");
                }
            }
        }
    }
}

impl Bytes {
    fn read(files: &CertificateFiles) -> Result<Self, IdentityError> {
        let read = |path: &Path| fs::read(path).map_err(file("read", path));
        Ok(Self { ca: read(&files.ca)?, certificate: read(&files.certificate)?, key: read(&files.key)? })
    }
}

fn build(
    files: &CertificateFiles,
    bytes: &Bytes,
) -> Result<(Identity, ServerConfig, ClientConfig), IdentityError> {
    let content = |path: &Path, expected| IdentityError::Content { path: path.to_owned(), expected };
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&bytes.ca) {
        roots.add(root.map_err(|_| content(&files.ca, "PEM certificates"))?)?;
    }
    let roots = Arc::new(roots);
    let chain = CertificateDer::pem_slice_iter(&bytes.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| content(&files.certificate, "PEM certificates"))?;
    let leaf = chain.first().ok_or_else(|| content(&files.certificate, "a PEM certificate"))?;
    let identity = Identity::of_certificate(leaf)?;
    let key =
        || PrivateKeyDer::from_pem_slice(&bytes.key).map_err(|_| content(&files.key, "a PEM private key"));
    let provider = Arc::new(ring::default_provider());

    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build()?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key()?)?;
    server.alpn_protocols = vec![ALPN_H2.to_vec()];

    let inner = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build()?;
    let verifier = MemberVerifier { inner, cluster: identity.cluster().to_owned() };
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain, key()?)?;
    client.alpn_protocols = vec![ALPN_H2.to_vec()];
    Ok((identity, server, client))
}

/// Verifies a server as usual (chain, time, name) and then that it is a member of the right cluster: a stolen node
/// certificate must not be able to play the control plane.
#[derive(Debug)]
struct MemberVerifier {
    inner: Arc<WebPkiServerVerifier>,
    cluster: String,
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        match Identity::of_certificate(end_entity) {
            Ok(identity) if identity.role() == Role::Member && identity.cluster() == self.cluster => {
                Ok(verified)
            }
            Ok(identity) => Err(rustls::Error::General(format!(
                "the server is {identity}, not a member of cluster {}",
                self.cluster
            ))),
            Err(error) => Err(rustls::Error::General(error.to_string())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Makes ring the provider of every TLS configuration in this process that names none. Called once, first thing in `main`;
/// a second call changes nothing.
pub fn install_provider() {
    if ring::default_provider().install_default().is_err() {
        debug_assert!(CryptoProvider::get_default().is_some());
    }
}
