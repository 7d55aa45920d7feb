//! Chat templates, each run in a process of its own.
//!
//! A template comes with a model, and what runs it counts steps and neither bytes nor the depth of what it prints: one that
//! doubles a list or prints a cycle would end the server and every answer under way. So the server only parses it; what
//! runs it is this program again, under [`TEMPLATE_VERB`], with bounds that the kernel keeps. What must hold: whatever a
//! template does, the server gets a text or a reason within [`PATIENCE`] once it is its turn, of which there are
//! [`WORKERS_MAX`] at once; a process that broke a bound is gone, and the next talk finds a new one.
//!
//! Both talk over a socket that is the other's standard input: the template's parts first, then for each talk a [`Job`] and its
//! answer, all in JSON after their length.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kedge_engine::EngineError;
use kedge_engine::generate::{ChatTemplate, Message};
use nix::libc::rlim_t;
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::signal::Signal;
use parking_lot::{Condvar, Mutex};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What `kedge` is called with to run templates.
pub const TEMPLATE_VERB: &str = "run-chat-template";

/// Processes at once.
const WORKERS_MAX: usize = 2;
/// Longest time on the clock that a process may take for one talk, when others have the processors.
const PATIENCE: Duration = Duration::from_secs(20);
/// Seconds of a processor that a talk may take: hundreds of times what real ones do.
const CPU_SECONDS_MAX: rlim_t = 2;
/// Memory that a process may have beside the program itself.
const MEMORY_MIB_MAX: rlim_t = 256;
/// As much stack as a thread that runs a program gets on any Linux.
const STACK_BYTES_MAX: rlim_t = 8 << 20;
/// The longest text of a talk: far above any context.
const TEXT_BYTES_MAX: usize = 32 << 20;
/// The longest that one tells the other: such a text, as JSON writes it.
const FRAME_BYTES_MAX: usize = 2 * TEXT_BYTES_MAX;

/// The program that runs templates.
#[derive(Clone, Debug)]
pub struct TemplateProgram {
    /// Which one.
    pub program: PathBuf,
    /// What it is told, so that it calls [`template_main`].
    pub arguments: Vec<OsString>,
}

impl Default for TemplateProgram {
    /// This one, also when another has been put in its place since.
    fn default() -> Self {
        Self { program: "/proc/self/exe".into(), arguments: vec![TEMPLATE_VERB.into()] }
    }
}

/// Why a talk has no text.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template refused it, or broke a bound.
    #[error("chat template {0}")]
    Template(String),
    /// There is no process to run it, or it was ended by somebody else.
    #[error("the process that runs the chat template: {0}")]
    Process(io::Error),
}

/// A talk and the variables beside it.
type Job<'a> = (&'a [Message], &'a Map<String, Value>);

/// A model's template and who runs it.
#[derive(Debug)]
pub struct Templates {
    program: TemplateProgram,
    /// The template, and the texts of the tokens that begin and end, as a process is told them first.
    opening: Vec<u8>,
    state: Mutex<State>,
    /// Told when one more may run.
    free: Condvar,
}

#[derive(Debug, Default)]
struct State {
    idle: Vec<Worker>,
    busy: usize,
}

/// A process that runs a template; it ends when this is dropped.
#[derive(Debug)]
struct Worker {
    child: Child,
    socket: UnixStream,
}

impl Templates {
    /// Runs this template by that program.
    pub fn new(template: &ChatTemplate, program: TemplateProgram) -> Self {
        let opening = serde_json::to_vec(&template.parts()).expect("texts are JSON");
        Self { program, opening, state: Mutex::default(), free: Condvar::new() }
    }

    /// The text of a talk, with variables of the template beside its own. Waits for the process: nothing for async threads.
    pub fn render(&self, messages: &[Message], variables: &Map<String, Value>) -> Result<String, TemplateError> {
        let job: Job<'_> = (messages, variables);
        let job = serde_json::to_vec(&job).map_err(|error| TemplateError::Template(error.to_string()))?;
        let mut state = self.state.lock();
        self.free.wait_while(&mut state, |state| state.busy == WORKERS_MAX);
        state.busy += 1;
        let idle = state.idle.pop();
        drop(state);
        let done = self.work(idle, &job);
        let mut state = self.state.lock();
        state.busy -= 1;
        let answer = done.map(|(answer, worker)| {
            state.idle.push(worker);
            answer
        });
        drop(state);
        self.free.notify_one();
        answer?.map_err(TemplateError::Template)
    }

    /// What the template says, and the process that said it.
    fn work(&self, idle: Option<Worker>, job: &[u8]) -> Result<(Result<String, String>, Worker), TemplateError> {
        if let Some(worker) = idle.and_then(Worker::alive) {
            match worker.ask(job) {
                // Somebody else ended it, maybe before it was asked.
                Err(TemplateError::Process(_)) => {}
                done => return done,
            }
        }
        Worker::start(&self.program, &self.opening)?.ask(job)
    }
}

impl Worker {
    fn start(program: &TemplateProgram, opening: &[u8]) -> Result<Self, TemplateError> {
        let begin = || {
            let (socket, other) = UnixStream::pair()?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            let child = Command::new(&program.program)
                .args(&program.arguments)
                .stdin(OwnedFd::from(other))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                // What a terminal sends those in front of it is not for this one.
                .process_group(0)
                .spawn()?;
            Ok(Self { child, socket })
        };
        let mut worker = begin().map_err(TemplateError::Process)?;
        match send(&mut worker.socket, opening) {
            Ok(()) => Ok(worker),
            Err(error) => Err(worker.end(error)),
        }
    }

    fn ask(mut self, job: &[u8]) -> Result<(Result<String, String>, Self), TemplateError> {
        match send(&mut self.socket, job).and_then(|()| receive(&mut self.socket)) {
            Ok(answer) => Ok((answer, self)),
            Err(error) => Err(self.end(error)),
        }
    }

    /// Nothing when it was ended from outside.
    fn alive(mut self) -> Option<Self> {
        matches!(self.child.try_wait(), Ok(None)).then_some(self)
    }

    /// Ends it after that error: why it gave no answer.
    fn end(mut self, error: io::Error) -> TemplateError {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, UnexpectedEof, WouldBlock};
        let reason = match error.kind() {
            WouldBlock | TimedOut => format!("takes more than {} seconds", PATIENCE.as_secs()),
            // Its end of the socket is closed: it has ended, or is about to.
            BrokenPipe | ConnectionReset | UnexpectedEof => match self.child.wait() {
                Ok(status) => match status.signal().map(Signal::try_from) {
                    Some(Ok(Signal::SIGXCPU)) => format!("takes more than {CPU_SECONDS_MAX} seconds of a processor"),
                    Some(Ok(Signal::SIGABRT | Signal::SIGSEGV)) => {
                        format!("takes more than {MEMORY_MIB_MAX} MiB of memory, or recurses too deeply")
                    }
                    // Also where memory was short, but no bound of its own was met.
                    _ => return TemplateError::Process(io::Error::other(format!("it ended with {status}"))),
                },
                Err(error) => return TemplateError::Process(error),
            },
            _ => error.to_string(),
        };
        tracing::warn!(reason, "ended what ran the chat template");
        TemplateError::Template(reason)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(socket: &mut UnixStream, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    socket.write_all(&length.to_le_bytes())?;
    socket.write_all(frame)
}

fn receive<T: DeserializeOwned>(socket: &mut UnixStream) -> io::Result<T> {
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::other(format!("{length} bytes came where at most {FRAME_BYTES_MAX} may")));
    }
    let mut frame = vec![0; length];
    socket.read_exact(&mut frame)?;
    Ok(serde_json::from_slice(&frame)?)
}

/// The process that runs a template: from its standard input, which is the socket, until that ends.
pub fn template_main() -> io::Result<()> {
    bound()?;
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let [text, bos, eos]: [String; 3] = receive(&mut socket)?;
    let template = ChatTemplate::new(&text, &bos, &eos);
    loop {
        let (messages, variables): (Vec<Message>, Map<String, Value>) = match receive(&mut socket) {
            Ok(job) => job,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        bound_time()?;
        let reason = |error: &EngineError| match error {
            EngineError::Template { reason } => reason.clone(),
            other => other.to_string(),
        };
        let rendered = template.as_ref().map_err(reason);
        let rendered = rendered.and_then(|one| one.render_with(&messages, &variables).map_err(|error| reason(&error)));
        let rendered = rendered.and_then(|text| match text.len() {
            ..=TEXT_BYTES_MAX => Ok(text),
            bytes => Err(format!("makes a text of {bytes} bytes; at most {TEXT_BYTES_MAX} are taken")),
        });
        send(&mut socket, &serde_json::to_vec(&rendered)?)?;
    }
}

/// Gives up what a template has no need of.
fn bound() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_STACK)?;
    setrlimit(Resource::RLIMIT_STACK, STACK_BYTES_MAX.min(hard), hard)?;
    // Who started this may have bounded it further.
    let (_, hard) = getrlimit(Resource::RLIMIT_DATA)?;
    let most = hard.min(MEMORY_MIB_MAX << 20);
    setrlimit(Resource::RLIMIT_DATA, most, most)?;
    // Where memory is short, this process is what goes first. Where that cannot be said, the bound is still there.
    #[allow(clippy::disallowed_methods, reason = "what the kernel is told of this process is no file of anybody's")]
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

/// Counts a talk's time from now on.
fn bound_time() -> io::Result<()> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let used = usage.user_time().tv_sec() + usage.system_time().tv_sec();
    let (_, hard) = getrlimit(Resource::RLIMIT_CPU)?;
    // Each of the two times may have lost most of a second; what was begun counts as whole.
    let until = rlim_t::try_from(used).unwrap_or(0) + 1 + CPU_SECONDS_MAX;
    Ok(setrlimit(Resource::RLIMIT_CPU, until.min(hard), hard)?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    /// Set for the process that runs templates.
    const HERE: &str = "KEDGE_TEST_TEMPLATES";

    /// Not a test by itself: what the others run.
    #[test]
    fn runs_templates() {
        if std::env::var_os(HERE).is_some() {
            template_main().unwrap();
        }
    }

    fn templates(text: &str) -> Templates {
        let this = std::env::current_exe().unwrap().into_os_string();
        let name = "templates::tests::runs_templates";
        let arguments = [format!("{HERE}=1").into(), this, name.into(), "--exact".into()];
        let program = TemplateProgram { program: "env".into(), arguments: arguments.into() };
        Templates::new(&ChatTemplate::new(text, "<s>", "</s>").unwrap(), program)
    }

    fn says(templates: &Templates, content: &str) -> Result<String, String> {
        let message = Message { role: "user".into(), content: content.into() };
        let variables = json!({"after": "!"});
        templates.render(&[message], variables.as_object().unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn whatever_a_template_does_there_is_a_text_or_a_reason() {
        let harms = [
            ("doubles", "{% set n.l = [1] %}{% for i in range(60) %}{% set n.l = n.l + n.l %}{% endfor %}", "256 MiB"),
            ("grows", "{% set n.s = 'x' %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "256 MiB"),
            ("multiplies", "{{ [1] * 10000000000 }}", "takes more than"),
            ("cycle", "{% set n.n = n %}{{ n }}", "recurses too deeply"),
            ("indents", "{{ 'a'|indent(99999999999) }}", "256 MiB"),
            ("formats", "{{ '{:99999999999}'.format(1) }}", "256 MiB"),
            ("long", "{% set n.s = 'x' * 9000000 %}{{ n.s }}{{ n.s }}{{ n.s }}{{ n.s }}", "at most 33554432 are taken"),
            ("steps", "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}", "fuel"),
        ];
        let branch = |(name, harm, _): &(&str, &str, &str)| {
            format!("{{% if said == '{name}' %}}{{% set n = namespace() %}}{harm}{{% endif %}}")
        };
        let all: String = harms.iter().map(branch).collect();
        let templates =
            templates(&format!("{{% set said = messages[0].content %}}{all}{{{{ bos_token ~ said ~ after }}}}"));
        assert_eq!(says(&templates, "a\u{1}é").unwrap(), "<s>a\u{1}é!");
        for (name, _, reason) in harms {
            let error = says(&templates, name).unwrap_err();
            assert!(error.starts_with("chat template ") && error.contains(reason), "{name}: {error}");
            assert_eq!(says(&templates, name.to_uppercase().as_str()), Ok(format!("<s>{}!", name.to_uppercase())));
        }
    }

    #[test]
    fn as_many_run_as_may_and_one_that_was_ended_is_replaced() {
        let templates = Arc::new(templates("{{ messages[0].content }}"));
        let ask = |index: usize| {
            let templates = templates.clone();
            std::thread::spawn(move || says(&templates, &index.to_string()).unwrap())
        };
        let asked: Vec<_> = (0..16).map(ask).collect();
        asked.into_iter().enumerate().for_each(|(index, said)| assert_eq!(said.join().unwrap(), index.to_string()));
        let mut state = templates.state.lock();
        assert!((1..=WORKERS_MAX).contains(&state.idle.len()) && state.busy == 0, "{state:?}");
        for worker in &mut state.idle {
            worker.child.kill().unwrap();
            worker.child.wait().unwrap();
        }
        drop(state);
        assert_eq!(says(&templates, "again").unwrap(), "again");
    }

    #[test]
    fn a_program_that_cannot_run_templates_is_no_fault_of_theirs() {
        let template = ChatTemplate::new("x", "", "").unwrap();
        for (program, says) in [("/none", "No such file"), ("false", "it ended with exit status: 1")] {
            let program = TemplateProgram { program: program.into(), arguments: Vec::new() };
            let error = Templates::new(&template, program).render(&[], &Map::new()).unwrap_err();
            assert!(matches!(error, TemplateError::Process(_)) && error.to_string().contains(says), "{error}");
        }
    }
}
