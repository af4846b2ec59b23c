//! Fetching models from a hub, which is played by a server on this machine: links, hashes, broken connections, no connection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use diffusion::{Download, Error, Hub, HubModel, ModelDir};
use sha1::{Digest, Sha1};
use sha2::Sha256;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/diffusion_pipeline/sd15")
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    // A file whose connection breaks after half of it.
    cut: Option<String>,
    // A file of which one byte is wrong.
    spoiled: Option<String>,
    // What the hub calls a file instead of its hash.
    tags: BTreeMap<String, String>,
    // The answer to whoever asks for the model, and for a file.
    status: Option<u16>,
    file_status: Option<u16>,
    // Where files are sent on to: the name that the repository has now.
    renamed: bool,
    // File and first byte of each request for more than one byte.
    asked: Vec<(String, usize)>,
    tokens: Vec<String>,
}

struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

fn add(files: &mut BTreeMap<String, Vec<u8>>, root: &Path, dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            add(files, root, &path);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut state = State::default();
        let root = fixture();
        add(&mut state.files, &root, &root);
        for decoy in ["README.md", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors"] {
            state.files.insert(decoy.into(), b"not asked for".to_vec());
        }
        let server = Self { endpoint: format!("http://{}", listener.local_addr().unwrap()), state: Arc::new(Mutex::new(state)) };
        let state = server.state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &mut state.lock().unwrap());
            }
        });
        server
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub { endpoint: self.endpoint.clone(), cache: cache.into(), token: Some("secret".into()), offline: false }
    }
}

// One request per connection.
fn answer(mut stream: TcpStream, state: &mut State) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(|l| l.unwrap_or_default());
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_string();
    let headers: BTreeMap<String, String> =
        lines.take_while(|l| !l.is_empty()).filter_map(|l| l.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_string()))).collect();
    state.tokens.extend(headers.get("authorization").cloned());
    let mut say = |head: String, body: &[u8], length: usize| {
        let _gone = stream.write_all(format!("{head}Content-Length: {length}\r\nConnection: close\r\n\r\n").as_bytes());
        let _gone = stream.write_all(body);
    };
    let refused = |code: u16| format!("HTTP/1.1 {code} No\r\n");
    if path == "/api/models/acme/tiny/revision/main" {
        if let Some(code) = state.status {
            return say(refused(code), b"", 0);
        }
        let siblings: Vec<_> = state.files.keys().map(|f| serde_json::json!({ "rfilename": f })).collect();
        let body = serde_json::json!({ "siblings": siblings, "sha": COMMIT }).to_string();
        return say("HTTP/1.1 200 OK\r\n".into(), body.as_bytes(), body.len());
    }
    let place = if state.renamed { "/acme/small/resolve" } else { "/acme/tiny/resolve" };
    let file = path.strip_prefix(&format!("{place}/{COMMIT}/")).unwrap_or_default().to_string();
    if let Some(old) = path.strip_prefix("/acme/tiny/").filter(|_| state.renamed) {
        return say(format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: /acme/small/{old}\r\n"), b"", 0);
    }
    if let Some(code) = state.file_status {
        return say(refused(code), b"", 0);
    }
    let Some(whole) = state.files.get(&file).cloned() else { return say("HTTP/1.1 404 Not Found\r\n".into(), b"", 0) };
    let range = headers["range"].strip_prefix("bytes=").unwrap().to_string();
    let (first, last) = range.split_once('-').unwrap();
    let (first, last) = (first.parse::<usize>().unwrap(), last.parse::<usize>().unwrap_or(whole.len() - 1));
    if first >= whole.len() {
        return say(refused(416), b"", 0);
    }
    let etag = if let Some(tag) = state.tags.get(&file) {
        format!("ETag: \"{tag}\"\r\n")
    } else if file.ends_with(".safetensors") {
        format!("X-Linked-Etag: \"{:x}\"\r\n", Hex(&Sha256::digest(&whole)))
    } else {
        format!("ETag: \"{:x}\"\r\n", Hex(&Sha1::new().chain_update(format!("blob {}\0", whole.len())).chain_update(&whole).finalize()))
    };
    let mut body = whole[first..=last].to_vec();
    let length = body.len();
    if !range.ends_with("-0") {
        state.asked.push((file.clone(), first));
        if state.cut.as_ref() == Some(&file) {
            body.truncate(length / 2);
        }
        if state.spoiled.as_ref() == Some(&file) {
            body[length / 2] ^= 1;
        }
    }
    let head =
        format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{last}/{}\r\nX-Repo-Commit: {COMMIT}\r\n{etag}", whole.len());
    say(head, &body, length);
}

struct Hex<'a>(&'a [u8]);

impl std::fmt::LowerHex for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

fn tiny() -> HubModel {
    "acme/tiny".parse().unwrap()
}

/// Whether the test ran in a process of its own: the client takes the environment's proxies, and behind those this machine's server is
/// not to be found.
fn ran_without_proxies(test: &str) -> bool {
    let is_proxy = |name: &str| ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY"].contains(&name.to_uppercase().as_str());
    let proxies: Vec<String> = std::env::vars().map(|(name, _)| name).filter(|name| is_proxy(name)).collect();
    if proxies.is_empty() {
        return false;
    }
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", &format!("hub::{test}"), "--nocapture"]);
    for name in proxies {
        again.env_remove(name);
    }
    let out = again.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
    true
}

fn problem(result: diffusion::Result<PathBuf>) -> String {
    match result {
        Err(e @ Error::Hub { .. }) => e.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_is_fetched_once_and_is_then_there_without_the_hub() {
    if ran_without_proxies("a_model_is_fetched_once_and_is_then_there_without_the_hub") {
        return;
    }
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let mut hub = server.hub(cache.path());
    let mut heard = BTreeMap::new();
    let mut hear = |d: Download| {
        heard.insert(d.file.to_string(), (d.done, d.total));
    };
    let dir = hub.fetch(&tiny(), &mut hear).unwrap();
    assert_eq!(dir, cache.path().join("models--acme--tiny/snapshots").join(COMMIT));
    assert!(ModelDir::open(&dir, None).is_ok());
    assert_eq!(unet::fingerprint(&dir).unwrap(), unet::fingerprint(fixture()).unwrap());
    assert!(heard[UNET].0 == heard[UNET].1 && heard[UNET].1 == std::fs::metadata(dir.join(UNET)).unwrap().len());
    let asked = std::mem::take(&mut server.state.lock().unwrap().asked);
    // The fixture's other files are none of a model directory.
    assert!(asked.iter().all(|(f, first)| *first == 0 && f != "README.md" && !f.contains(".bin") && !f.contains("fp16")), "{asked:?}");
    assert!(server.state.lock().unwrap().tokens.iter().all(|t| t == "Bearer secret"));

    assert_eq!(hub.fetch(&tiny(), &mut |_| panic!("nothing is missing")).unwrap(), dir);
    assert!(server.state.lock().unwrap().asked.is_empty());
    // No server, or nobody asked.
    hub.endpoint = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    assert_eq!(hub.fetch(&tiny(), &mut |_| {}).unwrap(), dir);
    hub.offline = true;
    assert_eq!(hub.fetch(&tiny(), &mut |_| {}).unwrap(), dir);
    let other: HubModel = "acme/other".parse().unwrap();
    let said = problem(hub.fetch(&other, &mut |_| {}));
    let expected = cache.path().join("models--acme--other").join("snapshots");
    assert!(said.contains("offline") && said.contains(&expected.display().to_string()), "{said}");
    hub.offline = false;
    let said = problem(hub.fetch(&other, &mut |_| {}));
    assert!(said.contains("cannot be reached") && said.contains(&expected.display().to_string()), "{said}");
    hub.endpoint = server.endpoint;
    assert!(problem(hub.fetch(&other, &mut |_| {})).contains("404"));
}

#[test]
fn a_download_that_broke_off_is_continued_and_a_damaged_one_is_refused() {
    if ran_without_proxies("a_download_that_broke_off_is_continued_and_a_damaged_one_is_refused") {
        return;
    }
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    server.state.lock().unwrap().cut = Some(UNET.into());
    let said = problem(hub.fetch(&tiny(), &mut |_| {}));
    assert!(said.contains(UNET) && said.contains("goes on"), "{said}");
    let asked = std::mem::take(&mut *server.state.lock().unwrap());
    let half = asked.files[UNET].len() / 2;
    *server.state.lock().unwrap() = State { files: asked.files, spoiled: Some("vae/config.json".into()), ..Default::default() };
    // The second half comes, then a small file with a wrong byte.
    let said = problem(hub.fetch(&tiny(), &mut |_| {}));
    assert!(said.contains("vae/config.json is damaged"), "{said}");
    let mut state = server.state.lock().unwrap();
    assert_eq!(state.asked.first(), Some(&(UNET.to_string(), half)), "{:?}", state.asked);
    state.asked.clear();
    state.spoiled = Some("vae/diffusion_pytorch_model.safetensors".into());
    drop(state);
    assert!(problem(hub.fetch(&tiny(), &mut |_| {})).contains("vae/diffusion_pytorch_model.safetensors is damaged"));
    server.state.lock().unwrap().spoiled = None;
    let dir = hub.fetch(&tiny(), &mut |_| {}).unwrap();
    for (name, bytes) in &server.state.lock().unwrap().files {
        if let Ok(got) = std::fs::read(dir.join(name)) {
            assert!(got == *bytes, "{name}");
        }
    }
    assert!(ModelDir::open(dir, None).is_ok());
}

// --- other repositories, refusals, half a cache ---

#[test]
fn a_repository_of_pytorch_files_is_fetched_as_a_local_folder_is_read() {
    if ran_without_proxies("a_repository_of_pytorch_files_is_fetched_as_a_local_folder_is_read") {
        return;
    }
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    server.state.lock().unwrap().files.retain(|name, _| !name.starts_with("unet/diffusion_pytorch_model") || name.ends_with(".bin"));
    let dir = hub.fetch(&tiny(), &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(dir.join("unet/diffusion_pytorch_model.bin")).unwrap(), b"not asked for");
    assert!(ModelDir::open(dir, None).is_ok());
}

#[test]
fn names_from_the_hub_must_be_hashes() {
    if ran_without_proxies("names_from_the_hub_must_be_hashes") {
        return;
    }
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let hub = server.hub(&cache.path().join("inner"));
    let call = |tag: &str| server.state.lock().unwrap().tags.insert("vae/config.json".into(), tag.into());
    for tag in ["../../../../evil", "/tmp/evil", "W/0123", "not-a-hash", ""] {
        call(tag);
        let said = problem(hub.fetch(&tiny(), &mut |_| {}));
        assert!(said.contains("vae/config.json has the tag") && said.contains("no hash"), "{said}");
    }
    let outside: Vec<_> = std::fs::read_dir(cache.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(outside, ["inner"]);
    // A hash of another kind cannot be checked, which is logged.
    call("0123456789abcdef0123456789abcdef");
    assert!(ModelDir::open(hub.fetch(&tiny(), &mut |_| {}).unwrap(), None).is_ok());
}

#[test]
fn refusals_say_what_helps() {
    if ran_without_proxies("refusals_say_what_helps") {
        return;
    }
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    for (code, told) in
        [(401, "HF_TOKEN"), (403, "accept its conditions on"), (404, "check name and revision (`main`)"), (500, "not in the cache")]
    {
        server.state.lock().unwrap().status = Some(code);
        let said = problem(hub.fetch(&tiny(), &mut |_| {}));
        assert!(said.contains(&format!("answers {code}")) && said.contains(told), "{said}");
    }
    // A gated model tells its list of files to everybody.
    (server.state.lock().unwrap().status, server.state.lock().unwrap().file_status) = (None, Some(403));
    let said = problem(hub.fetch(&tiny(), &mut |_| {}));
    assert!(said.contains("answers 403") && said.contains("gated") && said.contains("acme/tiny"), "{said}");
    server.state.lock().unwrap().file_status = None;
    let dir = hub.fetch(&tiny(), &mut |_| {}).unwrap();
    // A hub in trouble is as none.
    for code in [429, 503] {
        server.state.lock().unwrap().status = Some(code);
        assert_eq!(hub.fetch(&tiny(), &mut |_| {}).unwrap(), dir);
    }
}

#[test]
fn what_is_no_model_directory_is_told_before_anything_large_comes() {
    if ran_without_proxies("what_is_no_model_directory_is_told_before_anything_large_comes") {
        return;
    }
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    let flux = br#"{"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"], "text_encoder": ["transformers", "T5"]}"#;
    server.state.lock().unwrap().files.insert("model_index.json".into(), flux.to_vec());
    let said = problem(hub.fetch(&tiny(), &mut |_| {}));
    assert!(said.contains("FluxPipeline") && said.contains("no U-Net"), "{said}");
    assert_eq!(std::mem::take(&mut server.state.lock().unwrap().asked), [("model_index.json".to_string(), 0)]);

    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let hub = server.hub(cache.path());
    let single = [("README.md", b"read".to_vec()), ("model-v2.safetensors", b"weights".to_vec()), ("../evil", b"x".to_vec())];
    server.state.lock().unwrap().files = single.map(|(name, bytes)| (name.to_string(), bytes)).into();
    let said = problem(hub.fetch(&tiny(), &mut |_| {}));
    assert!(said.contains("no model_index.json") && said.contains("acme/tiny:model-v2.safetensors"), "{said}");
    let path = hub.fetch_file(&tiny(), "model-v2.safetensors", &mut |_| {}).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), b"weights");
    for absent in ["model.ckpt", "../evil"] {
        let said = problem(hub.fetch_file(&tiny(), absent, &mut |_| {}));
        assert!(said.contains(&format!("no file `{absent}`")) && said.contains("model-v2.safetensors"), "{said}");
    }
}

#[test]
fn half_a_cache_without_the_hub_is_told() {
    if ran_without_proxies("half_a_cache_without_the_hub_is_told") {
        return;
    }
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    let mut hub = server.hub(cache.path());
    hub.fetch_file(&tiny(), "vae/config.json", &mut |_| {}).unwrap();
    hub.offline = true;
    let said = problem(hub.fetch(&tiny(), &mut |_| {}));
    assert!(said.contains("only a part of it is in the cache") && said.contains("model_index.json"), "{said}");
    let said = problem(hub.fetch_file(&tiny(), "README.md", &mut |_| {}));
    assert!(said.contains("`README.md` is not in the cache"), "{said}");
    hub.offline = false;
    let dir = hub.fetch(&tiny(), &mut |_| {}).unwrap();
    hub.offline = true;
    for part in ["scheduler/scheduler_config.json", "text_encoder/config.json", UNET] {
        let kept = std::fs::canonicalize(dir.join(part)).unwrap();
        std::fs::remove_file(dir.join(part)).unwrap();
        let said = problem(hub.fetch(&tiny(), &mut |_| {}));
        assert!(said.contains(part), "{said}");
        std::fs::copy(kept, dir.join(part)).unwrap();
    }
    assert_eq!(hub.fetch(&tiny(), &mut |_| {}).unwrap(), dir);
}

#[test]
fn leftovers_and_other_processes_do_not_stop_a_download() {
    if ran_without_proxies("leftovers_and_other_processes_do_not_stop_a_download") {
        return;
    }
    let (server, cache) = (Server::start(), tempfile::tempdir().unwrap());
    // A repository that has another name now.
    server.state.lock().unwrap().renamed = true;
    let hub = server.hub(cache.path());
    let blobs = hub.folder(&tiny()).join("blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let whole = server.state.lock().unwrap().files[UNET].clone();
    let part = blobs.join(format!("{:x}.part", Hex(&Sha256::digest(&whole))));
    // All bytes came, but the run was killed before it gave them their name; and more than all.
    for leftover in [whole.clone(), [&whole[..], b"more"].concat()] {
        std::fs::write(&part, leftover).unwrap();
        let dirs = std::thread::scope(|scope| {
            let fetch = || hub.fetch(&tiny(), &mut |_| {}).unwrap();
            [scope.spawn(fetch), scope.spawn(fetch)].map(|thread| thread.join().unwrap())
        });
        assert!(dirs[0] == dirs[1] && std::fs::read(dirs[0].join(UNET)).unwrap() == whole && ModelDir::open(&dirs[0], None).is_ok());
        std::fs::remove_dir_all(&dirs[0]).unwrap();
    }
    // A cache that cannot be written is this machine's fault.
    let file = cache.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    match server.hub(&file).fetch(&tiny(), &mut |_| {}) {
        Err(Error::Io { path, .. }) => assert!(path.starts_with(&file)),
        other => panic!("{other:?}"),
    }
}
