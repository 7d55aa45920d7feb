//! `kedge infer run`: a talk with a model on the terminal.
//!
//! The answer goes to standard output, everything else to standard error, so that an answer can be piped on.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use kedge_engine::Decoder;
use kedge_engine::generate::{End, Event, Message, Request, Sampling, TextStream};
use kedge_serve::{TemplateProgram, Templates};
use kedge_world::World;
use serde_json::Map;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// The longest prompt that is read from a pipe: far above any context.
const PIPE_BYTES_MAX: u64 = 16 << 20;

/// How freely a model chooses that does not say it itself.
const TEMPERATURE: f32 = 0.7;

/// Settings of `kedge infer run`.
#[derive(Args, Debug)]
pub(crate) struct RunFlags {
    /// The model: a folder, its .safetensors file with the other files beside it, or a .gguf file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Answer this and end; without it, what a pipe brings is the prompt, and on a terminal a talk begins
    #[arg(value_name = "PROMPT")]
    prompt: Vec<String>,
    /// What the model is told before the talk
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// How freely it chooses: 0 always takes the likeliest token (default: what the model says, else 0.7)
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Most tokens of an answer (default: what the model says, else what the context has room for)
    #[arg(long, value_name = "COUNT")]
    max_tokens: Option<usize>,
    /// Where the draws begin: the same again gives the same answers
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    #[command(flatten)]
    placement: super::PlacementFlags,
    /// Say after each answer how fast it came, and first why no GPU computes it
    #[arg(long)]
    verbose: bool,
}

pub(crate) const EXAMPLES: &str = "\
In a talk, /clear forgets what was said, /bye or Ctrl-D ends it, and Ctrl-C stops the answer and not the program. \
The answer goes to standard output and everything else to standard error. With a PROMPT, standard input is not read.

Examples:
  kedge infer run images/demo-decoder/model
  kedge infer run images/demo-decoder/model \"What is a pod?\"
  echo \"What is a pod?\" |
    kedge infer run images/demo-decoder/model --temperature 0 --verbose";

/// What a line in a talk asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Say(String),
    Clear,
    Bye,
    Help,
    Nothing,
    Unknown(String),
}

impl Line {
    fn read(line: &str) -> Self {
        match line.trim() {
            "" => Self::Nothing,
            "/clear" => Self::Clear,
            "/bye" | "/exit" | "/quit" => Self::Bye,
            "/help" | "/?" => Self::Help,
            // A path is nothing anybody commands with.
            word if word.starts_with('/') && !word.contains([' ', '.']) && !word[1..].contains('/') => {
                Self::Unknown(word.to_owned())
            }
            text => Self::Say(text.to_owned()),
        }
    }
}

/// What was said so far.
#[derive(Clone, Debug)]
struct Talk {
    system: Option<Message>,
    said: Vec<Message>,
}

fn message(role: &str, content: impl Into<String>) -> Message {
    Message { role: role.to_owned(), content: content.into() }
}

impl Talk {
    fn new(system: Option<String>) -> Self {
        Self { system: system.map(|text| message("system", text)), said: Vec::new() }
    }

    fn messages(&self) -> Vec<Message> {
        self.system.iter().chain(&self.said).cloned().collect()
    }

    /// The tokens of the talk; where they do not fit, the oldest question and its answer are forgotten until they do. Also
    /// how many messages that were. None when the last question alone is too long.
    fn fit(
        &mut self,
        context: usize,
        tokens: impl Fn(&[Message]) -> Result<Vec<u32>>,
    ) -> Result<Option<(Vec<u32>, usize)>> {
        let mut forgotten = 0;
        loop {
            let all = tokens(&self.messages())?;
            if all.len() < context {
                return Ok(Some((all, forgotten)));
            }
            if self.said.len() < 3 {
                return Ok(None);
            }
            self.said.drain(..2);
            forgotten += 2;
        }
    }
}

/// How an answer came.
#[derive(Debug, Default)]
struct Speed {
    prompt: usize,
    cached: usize,
    made: usize,
    first: Duration,
    whole: Duration,
}

impl std::fmt::Display for Speed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { prompt, cached, made, .. } = self;
        let (first, rest) = (self.first.as_secs_f64(), (self.whole.saturating_sub(self.first)).as_secs_f64());
        write!(f, "{prompt} tokens read ({cached} of them known) in {first:.3} s; {made} tokens made")?;
        if *made > 1 && rest > 0.0 { write!(f, ", {:.1} tokens/s", (made - 1) as f64 / rest) } else { Ok(()) }
    }
}

struct Session {
    decoder: Arc<Decoder>,
    templates: Option<Arc<Templates>>,
    world: World,
    flags: RunFlags,
    interrupt: Signal,
    seed: u64,
}

/// Talks with a model.
pub(crate) async fn run(flags: RunFlags) -> Result<()> {
    if let Some(wrong) = flags.temperature.filter(|asked| !Sampling::TEMPERATURE.contains(&f64::from(*asked))) {
        bail!("--temperature: must be from 0 to 2, is {wrong}");
    }
    if flags.max_tokens == Some(0) {
        bail!("--max-tokens: must be at least 1");
    }
    let (decoder, no_gpu) = super::open(&flags.model, &flags.placement).await?;
    if let Some(why) = no_gpu.filter(|_| flags.verbose) {
        eprintln!("Computing on the processor: {why}");
    }
    let world = World::real();
    let seed = flags.seed.unwrap_or_else(|| world.random.number());
    let interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;
    let mut talk = Talk::new(flags.system.clone());
    let once = if !flags.prompt.is_empty() {
        Some(flags.prompt.join(" "))
    } else if !std::io::stdin().is_terminal() {
        Some(tokio::task::spawn_blocking(read_pipe).await.context("reading standard input")??)
    } else {
        None
    };
    let templates = decoder.template().map(|one| Arc::new(Templates::new(one, TemplateProgram::default())));
    let mut session = Session { decoder, templates, world, flags, interrupt, seed };
    match once {
        Some(prompt) if prompt.trim().is_empty() => bail!("the prompt is empty"),
        Some(prompt) => {
            if session.say(&mut talk, prompt).await? {
                bail!("stopped before the answer was whole");
            }
            Ok(())
        }
        None => session.talk(&mut talk).await,
    }
}

fn read_pipe() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().take(PIPE_BYTES_MAX + 1).read_to_end(&mut bytes).context("cannot read the prompt")?;
    if bytes.len() as u64 > PIPE_BYTES_MAX {
        bail!("the prompt is longer than {PIPE_BYTES_MAX} bytes");
    }
    String::from_utf8(bytes).context("the prompt is not UTF-8")
}

fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write the answer")
}

fn read_line() -> std::io::Result<Option<String>> {
    let mut line = String::new();
    Ok((std::io::stdin().read_line(&mut line)? > 0).then_some(line))
}

impl Session {
    async fn talk(&mut self, talk: &mut Talk) -> Result<()> {
        eprintln!("/clear forgets what was said, /bye or Ctrl-D ends, Ctrl-C stops an answer.");
        loop {
            eprint!(">>> ");
            let mut reading = tokio::task::spawn_blocking(read_line);
            let line = loop {
                tokio::select! {
                    read = &mut reading => break read.context("reading a line")?.context("cannot read a line")?,
                    _ = self.interrupt.recv() => eprint!("\n/bye or Ctrl-D ends the talk.\n>>> "),
                }
            };
            let Some(line) = line else {
                eprintln!();
                return Ok(());
            };
            match Line::read(&line) {
                Line::Bye => return Ok(()),
                Line::Nothing => {}
                Line::Clear => {
                    talk.said.clear();
                    eprintln!("What was said is forgotten.");
                }
                Line::Help => eprintln!("{EXAMPLES}"),
                Line::Unknown(word) => eprintln!("{word} is not known; /clear, /bye and /help are."),
                Line::Say(text) => {
                    if let Err(error) = self.say(talk, text).await {
                        talk.said.pop();
                        eprintln!("{error:#}");
                    }
                }
            }
        }
    }

    /// Says something and writes what comes back; whether it was stopped.
    async fn say(&mut self, talk: &mut Talk, text: String) -> Result<bool> {
        talk.said.push(message("user", text));
        let decoder = self.decoder.clone();
        let templates = self.templates.clone();
        let context = decoder.config().context;
        let mut fitted = talk.clone();
        let fitting = tokio::task::spawn_blocking(move || {
            let tokenizer = decoder.tokenizer();
            let fit = fitted.fit(context, |messages: &[Message]| match &templates {
                // The template writes the token that begins a text, where there is one.
                Some(templates) => Ok(tokenizer.encode(&templates.render(messages, &Map::new())?, false)?),
                // Without one there are no talks: what was said last is gone on from.
                None => Ok(tokenizer.encode(&messages.last().expect("something was said").content, true)?),
            });
            fit.map(|fit| (fit, fitted))
        });
        let fit = tokio::select! {
            _ = self.interrupt.recv() => return Ok(true),
            fit = fitting => fit.context("reading the prompt")??,
        };
        let (Some((prompt, forgotten)), fitted) = fit else {
            bail!("that is too long: prompt and answer may have {context} tokens together");
        };
        *talk = fitted;
        if forgotten > 0 {
            eprintln!("(the first {forgotten} messages are forgotten: the talk is longer than the model's context)");
        }
        let (answer, speed, stopped) = self.answer(prompt, context).await?;
        talk.said.push(message("assistant", answer));
        if self.flags.verbose {
            eprintln!("{speed}");
        }
        Ok(stopped)
    }

    async fn answer(&mut self, prompt: Vec<u32>, context: usize) -> Result<(String, Speed, bool)> {
        let room = context - prompt.len();
        let mut speed = Speed { prompt: prompt.len(), ..Speed::default() };
        self.seed = self.seed.wrapping_add(1);
        let defaults = self.decoder.defaults();
        let temperature = self.flags.temperature.or(defaults.temperature).unwrap_or(TEMPERATURE);
        let request = Request {
            prompt,
            tokens_max: self.flags.max_tokens.or(defaults.tokens_max).unwrap_or(room).min(room),
            stop: self.decoder.stop().to_vec(),
            sampling: Sampling { temperature, seed: self.seed, ..defaults.sampling() },
            ..Request::default()
        };
        // No more events come than the answer has tokens.
        let (sender, mut events) = mpsc::unbounded_channel();
        let begin = self.world.clock.monotonic();
        let id = self.decoder.submit(request, Box::new(move |event| sender.send(event).is_ok()))?;
        let (mut stream, mut whole, mut stopped) = (TextStream::default(), String::new(), false);
        while !stopped {
            let event = tokio::select! {
                biased;
                _ = self.interrupt.recv() => {
                    stopped = true;
                    break;
                }
                event = events.recv() => event.context("the decoder's thread has ended")?,
            };
            let text = match event {
                Event::Begin { cached_tokens } => {
                    speed.cached = cached_tokens;
                    continue;
                }
                Event::Token(choice) => {
                    if speed.made == 0 {
                        speed.first = self.world.clock.monotonic() - begin;
                    }
                    speed.made += 1;
                    stream.push(self.decoder.tokenizer(), choice.token)?
                }
                Event::End(End::Failed(why)) => bail!("the answer could not go on: {why}"),
                Event::End(_) => break,
            };
            whole += &text;
            // A terminal may be held for as long as somebody likes, and Ctrl-C counts all the same.
            let mut writing = tokio::task::spawn_blocking(move || write(&text));
            tokio::select! {
                biased;
                _ = self.interrupt.recv() => {
                    stopped = true;
                    writing.await.context("writing the answer")??;
                }
                written = &mut writing => written.context("writing the answer")??,
            }
        }
        if stopped {
            self.decoder.cancel(id);
        }
        let rest = stream.finish(self.decoder.tokenizer())?;
        whole += &rest;
        write(&(rest + "\n"))?;
        speed.whole = self.world.clock.monotonic() - begin;
        if stopped {
            eprintln!("(stopped)");
        }
        Ok((whole, speed, stopped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_things_to_say() {
        for (line, expected) in [
            ("hello\n", Line::Say("hello".into())),
            ("  \n", Line::Nothing),
            ("/clear\n", Line::Clear),
            ("/bye", Line::Bye),
            ("/help", Line::Help),
            ("/claer", Line::Unknown("/claer".into())),
            ("/etc/hosts", Line::Say("/etc/hosts".into())),
            ("/srv is full, why?", Line::Say("/srv is full, why?".into())),
        ] {
            assert_eq!(Line::read(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_too_long_is_forgotten_from_the_beginning_and_the_system_message_stays() {
        let count = |messages: &[Message]| Ok(vec![0; messages.iter().map(|message| message.content.len()).sum()]);
        let mut talk = Talk::new(Some("ss".into()));
        talk.said = ["aaaa", "bbbb", "cc", "dd", "e"].map(|text| message("user", text)).into();
        let (tokens, forgotten) = talk.fit(8, count).unwrap().unwrap();
        assert_eq!((tokens.len(), forgotten, talk.said.len()), (7, 2, 3));
        assert_eq!(talk.messages()[0].content, "ss");
        assert!(talk.fit(3, count).unwrap().is_none());
    }

    #[test]
    fn speed_is_that_of_the_tokens_after_the_first() {
        let ms = Duration::from_millis;
        let speed = Speed { prompt: 9, cached: 4, made: 11, first: ms(500), whole: ms(1500) };
        assert_eq!(speed.to_string(), "9 tokens read (4 of them known) in 0.500 s; 11 tokens made, 10.0 tokens/s");
        assert!(Speed { made: 1, ..speed }.to_string().ends_with("1 tokens made"));
    }
}
