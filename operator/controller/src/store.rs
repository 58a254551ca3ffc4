//! What is written to the apiserver. Every write has a precondition on the object's UID.

use basalt_crds::{FIELD_MANAGER, FINALIZER};
use basalt_plan as plan;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use kube_runtime::events::{Event, EventType, Recorder, Reporter};
use serde_json::json;
use thiserror::Error;

use crate::managed::Managed;

/// Longest note of an event that the apiserver takes.
const NOTE_BYTES_MAX: usize = 1024;

/// Writes to one apiserver.
#[derive(Clone)]
pub struct Store {
    client: Client,
    recorder: Recorder,
}

/// Why a write did not happen, or may not have happened.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The object changed or went away in the meantime: look again.
    #[error("the object changed in the meantime")]
    Changed(#[source] Box<kube::Error>),
    /// The apiserver did not do it.
    #[error("the apiserver: {0}")]
    Apiserver(#[source] Box<kube::Error>),
}

impl From<kube::Error> for StoreError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.code == 409 || status.code == 404 => {
                Self::Changed(Box::new(error))
            }
            _ => Self::Apiserver(Box::new(error)),
        }
    }
}

impl Store {
    /// Writes as `instance`, which events name.
    #[must_use]
    pub fn new(client: Client, instance: String) -> Self {
        let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: Some(instance) };
        Self { recorder: Recorder::new(client.clone(), reporter), client }
    }

    /// Applies a status, all of whose fields are ours.
    ///
    /// # Errors
    /// [`StoreError`]; the object that is returned otherwise is the one that is stored now.
    pub async fn apply_status<K: Managed>(&self, object: &K, status: &K::Status) -> Result<K, StoreError> {
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": { "name": object.name_any(), "uid": object.uid() },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let api: Api<K> = Api::all(self.client.clone());
        Ok(api.patch_status(&object.name_any(), &params, &Patch::Apply(&patch)).await?)
    }

    /// Adds our finalizer.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn add_finalizer<K: Managed>(&self, object: &K) -> Result<K, StoreError> {
        let mut finalizers = object.finalizers().to_vec();
        finalizers.push(FINALIZER.to_owned());
        self.set_finalizers(object, &finalizers).await
    }

    /// Removes our finalizer. When it was the last one, the object goes away.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn remove_finalizer<K: Managed>(&self, object: &K) -> Result<(), StoreError> {
        let mut finalizers = object.finalizers().to_vec();
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        self.set_finalizers(object, &finalizers).await.map(|_| ())
    }

    /// The resource version makes sure that nobody else's finalizer is lost.
    async fn set_finalizers<K: Managed>(&self, object: &K, finalizers: &[String]) -> Result<K, StoreError> {
        let patch = json!({ "metadata": {
            "uid": object.uid(),
            "resourceVersion": object.resource_version(),
            "finalizers": finalizers,
        }});
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
        let api: Api<K> = Api::all(self.client.clone());
        Ok(api.patch(&object.name_any(), &params, &Patch::Merge(&patch)).await?)
    }

    /// Tells users something about an object; the same thing told again soon is counted in one event.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn publish<K: Managed>(&self, object: &K, event: &plan::Event) -> Result<(), StoreError> {
        let mut note = event.note.clone();
        let end = (0..=NOTE_BYTES_MAX.min(note.len())).rev().find(|end| note.is_char_boundary(*end));
        note.truncate(end.unwrap_or_default());
        let event = Event {
            type_: match event.kind {
                plan::EventKind::Normal => EventType::Normal,
                plan::EventKind::Warning => EventType::Warning,
            },
            reason: event.reason.clone(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        Ok(self.recorder.publish(&event, &object.object_ref(&())).await?)
    }
}
