// SPDX-License-Identifier: Apache-2.0
//! An API server of Kubernetes that knows events and nothing else, over HTTP on the loopback address.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::HarnessError;

/// How long an event may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Events by their path.
type Events = Arc<Mutex<BTreeMap<String, Value>>>;

/// It answers as long as the test runs.
#[derive(Debug)]
pub struct ApiServer {
    address: SocketAddr,
    events: Events,
}

impl ApiServer {
    /// Starts it.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let server = Self { address: listener.local_addr()?, events: Events::default() };
        let events = server.events.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let events = events.clone();
                std::thread::spawn(move || answer_all(&stream, &events));
            }
        });
        Ok(server)
    }

    /// A file that leads to it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> Result<(), HarnessError> {
        // The client wants to know whose certificates it may believe, over HTTP too.
        let authority = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/kubelet/ca.crt");
        let cluster =
            json!({"server": format!("http://{}", self.address), "certificate-authority": authority});
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "node", "user": {"token": "secret"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "node"}}],
        });
        std::fs::write(path, config.to_string()).map_err(|source| HarnessError::file("write", path, source))
    }

    /// Waits for an event with this reason of this pod.
    ///
    /// # Errors
    /// When none comes; names those that have.
    pub fn wait_for(&self, pod: &str, reason: &str) -> Result<Value, HarnessError> {
        self.wait_until(|event| {
            text(event, "/involvedObject/name") == pod && text(event, "/reason") == reason
        })
    }

    /// Waits for an event of which this is true.
    ///
    /// # Errors
    /// As [`ApiServer::wait_for`].
    pub fn wait_until(&self, is_it: impl Fn(&Value) -> bool) -> Result<Value, HarnessError> {
        let began = Instant::now();
        loop {
            if let Some(event) = lock(&self.events).values().find(|event| is_it(event)) {
                return Ok(event.clone());
            }
            if began.elapsed() > LIMIT {
                return Err(HarnessError::answer("thaw-nri", format!("{:#?}", lock(&self.events))));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn lock(events: &Events) -> MutexGuard<'_, BTreeMap<String, Value>> {
    // A poisoned lock only means that another thread panicked.
    events.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection, with any number of requests.
fn answer_all(stream: &TcpStream, events: &Events) {
    let mut reader = BufReader::new(stream);
    while let Ok(Some((method, path, body))) = request(&mut reader) {
        let (status, answer) = respond(&method, &path, body, &mut lock(events));
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}",
            answer.len()
        );
        let mut writer = stream;
        if writer.write_all(format!("{head}\r\n\r\n{answer}").as_bytes()).is_err() {
            return;
        }
    }
}

/// Method, path and body; `None` at the end of the connection.
fn request(reader: &mut impl BufRead) -> io::Result<Option<(String, String, Value)>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else { return Ok(None) };
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let (method, mut length, mut authorized) = (method.to_owned(), 0, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((key, value)) = header.trim().split_once(": ") else { break };
        match key.to_lowercase().as_str() {
            "content-length" => length = value.parse().map_err(io::Error::other)?,
            "authorization" => authorized = value == "Bearer secret",
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let method = if authorized { method } else { "UNAUTHORIZED".to_owned() };
    Ok(Some((method, path, serde_json::from_slice(&body).unwrap_or_default())))
}

/// What an API server makes of it. A pod called `forbidden` may have no events.
fn respond(
    method: &str,
    path: &str,
    body: Value,
    events: &mut BTreeMap<String, Value>,
) -> (&'static str, Value) {
    let failed = |code: u16, reason: &str| {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
               "reason": reason, "message": reason})
    };
    match method {
        "POST" if text(&body, "/involvedObject/name") == "forbidden" => {
            ("403 Forbidden", failed(403, "Forbidden"))
        }
        "POST" => {
            let name = format!("{path}/{}", text(&body, "/metadata/name"));
            if events.contains_key(&name) {
                return ("409 Conflict", failed(409, "AlreadyExists"));
            }
            events.insert(name, body.clone());
            ("201 Created", body)
        }
        "PATCH" => match (events.get_mut(path).and_then(Value::as_object_mut), body) {
            (Some(event), Value::Object(changed)) => {
                event.extend(changed);
                ("200 OK", Value::Object(event.clone()))
            }
            _ => ("404 Not Found", failed(404, "NotFound")),
        },
        // A kubelet may not read events.
        "GET" => ("403 Forbidden", failed(403, "Forbidden")),
        "UNAUTHORIZED" => ("401 Unauthorized", failed(401, "Unauthorized")),
        _ => ("405 Method Not Allowed", failed(405, "MethodNotAllowed")),
    }
}
