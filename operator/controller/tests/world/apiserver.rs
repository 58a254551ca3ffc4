//! As much of an apiserver as the operator's writes need, in memory, with the preconditions that the real one checks.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use basalt_controller::managed::Managed;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

use super::faults::{Fate, Faults};

/// The apiserver. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Apiserver {
    faults: Arc<Faults>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// By plural and name.
    objects: BTreeMap<(String, String), Value>,
    events: Vec<Value>,
    version: u64,
    uids: u64,
}

impl Apiserver {
    pub(crate) fn new(faults: Arc<Faults>) -> Self {
        Self { faults, state: Arc::default() }
    }

    /// A client of this apiserver, under the faults of the run.
    pub(crate) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.serve(request).await) }
        });
        Client::new(service, "default")
    }

    /// What a user applies.
    pub(crate) fn create<K: Managed>(&self, name: &str, spec: Value) {
        let mut state = self.state.lock().unwrap();
        state.uids += 1;
        state.version += 1;
        let object = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "spec": spec,
            "metadata": {
                "name": name, "uid": format!("uid-{}", state.uids), "generation": 1,
                "resourceVersion": state.version.to_string(),
            },
        });
        let plural = K::plural(&()).into_owned();
        assert!(state.objects.insert((plural, name.to_owned()), object).is_none(), "{name} exists");
    }

    /// What a user edits.
    pub(crate) fn edit<K: Managed>(&self, name: &str, field: &str, value: Value) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let object = state.objects.get_mut(&(K::plural(&()).into_owned(), name.to_owned())).unwrap();
        object["spec"][field] = value;
        object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_u64().unwrap() + 1);
        object["metadata"]["resourceVersion"] = json!(version.to_string());
    }

    /// What a user deletes.
    pub(crate) fn delete<K: Managed>(&self, name: &str) {
        let mut state = self.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        let key = (K::plural(&()).into_owned(), name.to_owned());
        let object = state.objects.get_mut(&key).unwrap();
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if finalizers(object) == 0 {
            state.objects.remove(&key);
        }
    }

    pub(crate) fn list<K: Managed>(&self) -> Vec<K> {
        let state = self.state.lock().unwrap();
        let plural = K::plural(&());
        let ours = state.objects.iter().filter(|((of, _), _)| *of == plural);
        ours.map(|(_, object)| serde_json::from_value(object.clone()).unwrap()).collect()
    }

    pub(crate) fn get<K: Managed>(&self, name: &str) -> Option<K> {
        self.list::<K>().into_iter().find(|object| object.meta().name.as_deref() == Some(name))
    }

    pub(crate) fn version(&self) -> u64 {
        self.state.lock().unwrap().version
    }

    /// Reasons of the events about one object.
    pub(crate) fn events(&self, name: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let ours = state.events.iter().filter(|event| event["regarding"]["name"] == name);
        ours.map(|event| event["reason"].as_str().unwrap().to_owned()).collect()
    }

    async fn serve(&self, request: Request<Body>) -> Response<Body> {
        let fate = self.faults.call();
        let lost = || answer(StatusCode::SERVICE_UNAVAILABLE, &json!({ "message": "the process is dead" }));
        if fate == Fate::Lost {
            return lost();
        }
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let path: Vec<&str> = head.uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let (status, value) = match (&head.method, path.as_slice()) {
            (&Method::POST, [.., "events"]) => {
                self.state.lock().unwrap().events.push(body.clone());
                (StatusCode::CREATED, body)
            }
            (&Method::PATCH, [.., "events", _]) => (StatusCode::OK, body),
            (&Method::PATCH, ["apis", "basalt.storage", "v1alpha1", plural, name]) => {
                self.patch(plural, name, &body, merge_finalizers)
            }
            (&Method::PATCH, ["apis", "basalt.storage", "v1alpha1", plural, name, "status"]) => {
                self.patch(plural, name, &body, apply_status)
            }
            other => panic!("the operator does something unexpected: {other:?}"),
        };
        if fate == Fate::Unheard { lost() } else { answer(status, &value) }
    }

    fn patch(
        &self,
        plural: &str,
        name: &str,
        patch: &Value,
        change: fn(&mut Value, &Value),
    ) -> (StatusCode, Value) {
        let mut state = self.state.lock().unwrap();
        let next_version = state.version + 1;
        let key = (plural.to_owned(), name.to_owned());
        let Some(object) = state.objects.get_mut(&key) else {
            return (StatusCode::NOT_FOUND, refusal(404, "NotFound"));
        };
        for precondition in ["uid", "resourceVersion"] {
            let given = &patch["metadata"][precondition];
            if !given.is_null() && *given != object["metadata"][precondition] {
                return (StatusCode::CONFLICT, refusal(409, "Conflict"));
            }
        }
        assert!(!patch["metadata"]["uid"].is_null(), "a write without a UID");
        let before = object.clone();
        change(object, patch);
        if *object != before {
            object["metadata"]["resourceVersion"] = json!(next_version.to_string());
        }
        let after = object.clone();
        if finalizers(&after) == 0 && !after["metadata"]["deletionTimestamp"].is_null() {
            state.objects.remove(&key);
        }
        if after != before {
            state.version = next_version;
        }
        (StatusCode::OK, after)
    }
}

fn merge_finalizers(object: &mut Value, patch: &Value) {
    object["metadata"]["finalizers"] = patch["metadata"]["finalizers"].clone();
}

/// The operator owns every field of a status, so that applying one replaces it.
fn apply_status(object: &mut Value, patch: &Value) {
    object["status"] = patch["status"].clone();
}

fn finalizers(object: &Value) -> usize {
    object["metadata"]["finalizers"].as_array().map_or(0, Vec::len)
}

fn refusal(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code })
}

fn answer(status: StatusCode, value: &Value) -> Response<Body> {
    Response::builder().status(status).body(Body::from(value.to_string().into_bytes())).unwrap()
}
