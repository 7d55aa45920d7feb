//! The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`, on the port of everything else.
//!
//! What must hold: a request is held to the same rules as over REST; messages have the bound that bodies have; a refusal
//! names the field.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use parking_lot::Mutex;
use prost::Message;
use serde_json::{Map, Value};
use tokio::time::Instant;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tower::Service;

use crate::answer::{Body, Server};
use crate::api::Refusal;
use crate::engine::Output;
use crate::intake::Part;
use crate::life;
use crate::routes::unknown_version;
use crate::telemetry::Watch;
use crate::v2::{self, Infer, Input, Task, TensorMetadata, VERSION};
use crate::weight;
use proto::grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer};
use proto::infer_parameter::ParameterChoice;
use proto::model_infer_response::InferOutputTensor;
use proto::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "made from the .proto")]
mod proto {
    tonic::include_proto!("inference");
}

/// What is asked by whoever has no key.
const PROBES: [&str; 2] = ["/inference.GRPCInferenceService/ServerLive", "/inference.GRPCInferenceService/ServerReady"];

/// What computes.
const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

/// A message of nothing.
const EMPTY: [u8; 5] = [0; 5];

/// Whether a request is gRPC's.
pub(crate) fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// Answers it.
pub(crate) async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Response<Body> {
    // What probes ask needs no key, as over REST.
    let is_probe = PROBES.contains(&request.uri().path());
    if let Some(Err(refusal)) = server.options.keys.as_ref().filter(|_| !is_probe).map(|k| k.check(request.headers())) {
        return server.refused(refusal).into_http();
    }
    let is_infer = request.uri().path() == INFER;
    let answered = if is_infer { infer(&server, request).await } else { tell(&server, request).await };
    answered.unwrap_or_else(|refusal| server.refused(refusal).into_http())
}

/// What computes.
async fn infer(server: &Arc<Server>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let watch = server.watch(request.headers(), request.extensions(), "infer", INFER);
    let work = async |mut parts: Parts, mut body: Bytes, place, _| {
        // A long one takes its time, which others on this thread do not have.
        if let Some(message) = only_message(&body)? {
            let request = server.intake.read(watch.origin(), move || decoded(message)).await?;
            parts.extensions.insert(request);
            body = Bytes::from_static(&EMPTY);
        }
        let asked = Asked::new(server.clone(), Some((watch.clone(), place)));
        let (response, status) = asked.answer(parts, body).await;
        status.into_iter().for_each(|status| watch.note(|notes| notes.status = status));
        Ok(response)
    };
    let answered = server.admit(request, &watch, work).await;
    answered.inspect_err(|refusal| watch.note(|notes| notes.status = refusal.status))
}

/// What needs no computing.
async fn tell(server: &Arc<Server>, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
    let deadline = life::deadline(request.headers(), Instant::now(), server.options.request_timeout)?;
    let work = async {
        let (parts, body) = request.into_parts();
        let origin = server.origin(&parts.headers, &parts.extensions);
        let (body, _room) = server.body(&parts.headers, body, &origin).await?;
        Ok(Asked::new(server.clone(), None).answer(parts, body).await.0)
    };
    server.life.until(deadline).bound(work).await
}

/// The message of a body, which must have one, whole; none where it is packed, which is refused later.
/// (`Length-Prefixed-Message` of gRPC's `PROTOCOL-HTTP2.md`.)
fn only_message(body: &Bytes) -> Result<Option<Bytes>, Refusal> {
    let (length, message) = match body.split_first_chunk::<5>() {
        Some(([0, length @ ..], message)) => (u32::from_be_bytes(*length) as usize, message),
        Some(_) => return Ok(None),
        None => return Err(Refusal::plain(400, "a call has one message, and this one has none")),
    };
    if length != message.len() {
        let reason = format!(
            "a call has one message; this one's says that it has {length} bytes, and {} are there",
            message.len()
        );
        return Err(Refusal::plain(400, reason));
    }
    Ok(Some(body.slice(5..)))
}

/// The fields of a `ModelInferRequest` that are messages: parameters, inputs and outputs; then those of theirs: the value of a
/// parameter, the parameters of a tensor, and its contents.
const MESSAGES: [&[u64]; 2] = [&[4, 5, 6], &[2, 4, 5]];

/// What the message of a body takes once it is read.
pub(crate) fn weight(body: &[u8]) -> usize {
    weight::of_message(body.get(5..).unwrap_or_default(), &MESSAGES)
}

fn decoded(message: Bytes) -> Result<ModelInferRequest, Refusal> {
    let wrong = |error| Refusal::plain(400, format!("the message is no ModelInferRequest: {error}"));
    ModelInferRequest::decode(message).map_err(wrong)
}

/// The server, as a request of gRPC asks it.
struct Asked {
    server: Arc<Server>,
    /// Who watches what computes, and its place.
    infer: Mutex<Option<(Arc<Watch>, Part)>>,
    /// Whether the answer was counted.
    counted: Arc<AtomicBool>,
}

impl Asked {
    fn new(server: Arc<Server>, infer: Option<(Arc<Watch>, Part)>) -> Self {
        Self { server, infer: Mutex::new(infer), counted: Arc::default() }
    }

    /// The answer; with its status over REST where tonic gave it by itself, since there is no such method or no such message.
    async fn answer(self, parts: Parts, body: Bytes) -> (Response<Body>, Option<u16>) {
        let (server, counted, is_packed) =
            (self.server.clone(), self.counted.clone(), parts.headers.contains_key("grpc-encoding"));
        let most = server.options.body_bytes_max;
        let mut service = GrpcInferenceServiceServer::new(self).max_decoding_message_size(most);
        let Ok(response) = service.call(Request::from_parts(parts, Full::new(body))).await;
        let status = (!counted.load(Ordering::Relaxed)).then(|| {
            let code = Status::from_header_map(response.headers()).map(|status| status.code());
            match code {
                Some(Code::Unimplemented) if is_packed => 415,
                Some(Code::Unimplemented) => 404,
                _ => 400,
            }
        });
        status.into_iter().for_each(|status| server.count(status));
        (response.map(|body| body.map_err(io::Error::other).boxed_unsync()), status)
    }

    fn answered<T>(&self, answer: Result<T, Refusal>) -> Result<tonic::Response<T>, Status> {
        self.counted.store(true, Ordering::Relaxed);
        match answer {
            Ok(answer) => {
                self.server.count(200);
                Ok(tonic::Response::new(answer))
            }
            Err(refusal) => Err(self.server.refused(refusal)),
        }
    }
}

impl Server {
    /// A refusal as gRPC says it, counted under the status it would have over REST.
    fn refused(&self, refusal: Refusal) -> Status {
        self.count(refusal.status);
        let code = match refusal.status {
            400 | 405 | 415 => Code::InvalidArgument,
            401 => Code::Unauthenticated,
            404 => Code::NotFound,
            408 | 504 => Code::DeadlineExceeded,
            413 | 429 => Code::ResourceExhausted,
            503 => Code::Unavailable,
            _ => Code::Internal,
        };
        let mut status = Status::new(code, refusal.to_string());
        if let 429 | 503 = refusal.status {
            // What `Retry-After` is over HTTP (gRPC's A6).
            status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from_static("1000"));
        }
        status
    }

    /// Whether that is the model served here.
    fn knows(&self, name: &str, version: &str) -> Result<(), Refusal> {
        let served = &self.options.name;
        if name != served {
            return Err(Refusal::plain(404, format!("model {name:?} is not served here; {served:?} is")));
        }
        if version.is_empty() || version == VERSION { Ok(()) } else { Err(unknown_version(name, version)) }
    }

    async fn infer(
        &self,
        request: ModelInferRequest,
        place: Part,
        watch: &Arc<Watch>,
    ) -> Result<ModelInferResponse, Refusal> {
        self.knows(&request.model_name, &request.model_version)?;
        let (id, raw, task) = (request.id.clone(), !request.raw_input_contents.is_empty(), self.task()?);
        let asked = self.intake.read(watch.origin(), move || understood(task, &request)).await?;
        let (output, ignored) = self.engine()?.infer(asked, place, &self.intake, &self.metrics, watch).await?;
        let mut answer = told(self.options.name.clone(), id, task.output(), &output, raw);
        if !ignored.is_empty() {
            let told = ParameterChoice::StringParam(ignored.join(", "));
            answer.parameters.insert("ignored".to_owned(), InferParameter { parameter_choice: Some(told) });
        }
        Ok(answer)
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Asked {
    async fn server_live(
        &self,
        _: tonic::Request<proto::ServerLiveRequest>,
    ) -> Result<tonic::Response<proto::ServerLiveResponse>, Status> {
        self.answered(Ok(proto::ServerLiveResponse { live: self.server.lives().is_ok() }))
    }

    async fn server_ready(
        &self,
        _: tonic::Request<proto::ServerReadyRequest>,
    ) -> Result<tonic::Response<proto::ServerReadyResponse>, Status> {
        self.answered(Ok(proto::ServerReadyResponse { ready: self.server.takes_in().is_ok() }))
    }

    async fn model_ready(
        &self,
        request: tonic::Request<proto::ModelReadyRequest>,
    ) -> Result<tonic::Response<proto::ModelReadyResponse>, Status> {
        let proto::ModelReadyRequest { name, version } = request.into_inner();
        let ready = |()| proto::ModelReadyResponse { ready: self.server.takes_in().is_ok() };
        self.answered(self.server.knows(&name, &version).map(ready))
    }

    async fn server_metadata(
        &self,
        _: tonic::Request<proto::ServerMetadataRequest>,
    ) -> Result<tonic::Response<proto::ServerMetadataResponse>, Status> {
        let metadata = |task: Task| proto::ServerMetadataResponse {
            name: "kedge".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            extensions: task.extensions().iter().map(|name| (*name).to_owned()).collect(),
        };
        self.answered(self.server.task().map(metadata))
    }

    async fn model_metadata(
        &self,
        request: tonic::Request<proto::ModelMetadataRequest>,
    ) -> Result<tonic::Response<proto::ModelMetadataResponse>, Status> {
        let proto::ModelMetadataRequest { name, version } = request.into_inner();
        let known = self.server.knows(&name, &version);
        let tensor = |TensorMetadata { name, datatype, shape }| {
            vec![proto::model_metadata_response::TensorMetadata { name: name.into(), datatype: datatype.into(), shape }]
        };
        let metadata = |task: Task| proto::ModelMetadataResponse {
            name,
            versions: vec![VERSION.into()],
            platform: task.platform().into(),
            inputs: tensor(task.input()),
            outputs: tensor(task.output()),
        };
        self.answered(known.and_then(|()| self.server.task()).map(metadata))
    }

    async fn model_infer(
        &self,
        request: tonic::Request<ModelInferRequest>,
    ) -> Result<tonic::Response<ModelInferResponse>, Status> {
        let (_, mut extensions, request) = request.into_parts();
        let request = extensions.remove().unwrap_or(request);
        let Some((watch, place)) = self.infer.lock().take() else {
            return self.answered(Err(Refusal::plain(500, "it was not admitted")));
        };
        let answer = self.server.infer(request, place, &watch).await;
        let answer = answer.and_then(|answer| {
            let room = self.server.room_of_answer(answer.encoded_len(), watch.origin())?;
            Ok((answer, room))
        });
        watch.note(|notes| notes.status = answer.as_ref().map_or_else(|refusal| refusal.status, |_| 200));
        let answered = self.answered(answer)?;
        let (metadata, (answer, room), mut extensions) = answered.into_parts();
        extensions.insert(room);
        Ok(tonic::Response::from_parts(metadata, answer, extensions))
    }
}

/// What a request asks.
fn understood(task: Task, request: &ModelInferRequest) -> Result<Infer, Refusal> {
    let raw = &request.raw_input_contents;
    if !raw.is_empty() && raw.len() != request.inputs.len() {
        let reason = format!("has {} elements for {} inputs", raw.len(), request.inputs.len());
        return Err(Refusal::field("raw_input_contents", reason));
    }
    let inputs = request.inputs.iter().enumerate().map(|(index, input)| {
        if !input.parameters.is_empty() {
            return Err(Refusal::field(format!("inputs[{index}].parameters"), "is not supported"));
        }
        let texts = match (raw.get(index), &input.contents) {
            (None, None) => Err(Refusal::field(format!("inputs[{index}].contents"), "is missing")),
            (None, Some(contents)) => {
                let field = format!("inputs[{index}].contents.bytes_contents");
                texts(&field, contents.bytes_contents.iter().map(Bytes::as_ref))
            }
            (Some(_), Some(_)) => {
                let reason = "must not be there beside raw_input_contents";
                Err(Refusal::field(format!("inputs[{index}].contents"), reason))
            }
            (Some(raw), None) => {
                let field = format!("raw_input_contents[{index}]");
                let elements = v2::of_raw(raw);
                let wrong =
                    || Refusal::field(&field, "ends within an element: each has its length in 4 bytes before it");
                elements.ok_or_else(wrong).and_then(|elements| texts(&field, elements.into_iter()))
            }
        };
        Ok(Input { name: &input.name, datatype: &input.datatype, shape: input.shape.clone(), texts })
    });
    let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
    if let Some(index) = request.outputs.iter().position(|output| !output.parameters.is_empty()) {
        return Err(Refusal::field(format!("outputs[{index}].parameters"), "is not supported"));
    }
    let outputs: Vec<&str> = request.outputs.iter().map(|output| output.name.as_str()).collect();
    let texts = v2::texts(task, inputs, &outputs)?;
    Infer { id: None, texts, parameters: parameters(&request.parameters)?, ignored: Vec::new() }.checked(task)
}

fn texts<'a>(field: &str, elements: impl Iterator<Item = &'a [u8]>) -> Result<Vec<String>, Refusal> {
    let text = |(index, element): (usize, &[u8])| {
        let text = std::str::from_utf8(element).map(str::to_owned);
        text.map_err(|error| Refusal::field(field, format!("element {index} is not UTF-8: {error}")))
    };
    elements.enumerate().map(text).collect()
}

fn parameters(parameters: &HashMap<String, InferParameter>) -> Result<Map<String, Value>, Refusal> {
    let value = |(name, parameter): (&String, &InferParameter)| {
        let value = match &parameter.parameter_choice {
            None => Value::Null,
            Some(ParameterChoice::BoolParam(value)) => (*value).into(),
            Some(ParameterChoice::Int64Param(value)) => (*value).into(),
            Some(ParameterChoice::Uint64Param(value)) => (*value).into(),
            // JSON has no infinity and would take it for nothing.
            Some(ParameterChoice::DoubleParam(value)) if !value.is_finite() => {
                return Err(Refusal::field(
                    format!("parameters.{name}"),
                    format!("must be a finite number, is {value}"),
                ));
            }
            Some(ParameterChoice::DoubleParam(value)) => (*value).into(),
            Some(ParameterChoice::StringParam(value)) => value.as_str().into(),
        };
        Ok((name.clone(), value))
    };
    parameters.iter().map(value).collect()
}

/// The answer: raw where the request was.
fn told(model_name: String, id: String, given: TensorMetadata, output: &Output, raw: bool) -> ModelInferResponse {
    let mut shape = given.shape;
    shape[0] = output.count() as i64;
    let (mut contents, mut bytes) = (InferTensorContents::default(), Vec::new());
    match output {
        Output::Vectors(vectors) => {
            let numbers = vectors.iter().flat_map(|embedding| embedding.vector.iter().copied());
            if raw {
                bytes = numbers.flat_map(f32::to_le_bytes).collect();
            } else {
                contents.fp32_contents = numbers.collect();
            }
        }
        Output::Texts(texts) => {
            if raw {
                bytes = v2::to_raw(texts.iter().map(String::as_bytes));
            } else {
                contents.bytes_contents = texts.iter().map(|text| Bytes::from(text.clone())).collect();
            }
        }
    }
    let output = InferOutputTensor {
        name: given.name.into(),
        datatype: given.datatype.into(),
        shape,
        parameters: HashMap::new(),
        contents: (!raw).then_some(contents),
    };
    ModelInferResponse {
        model_name,
        model_version: VERSION.into(),
        id,
        parameters: HashMap::new(),
        outputs: vec![output],
        raw_output_contents: if raw { vec![bytes.into()] } else { Vec::new() },
    }
}
