//! The Open Inference Protocol, REST and gRPC, with a model that makes text and one that makes vectors.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::{Served, TEXT, endless};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use kedge_engine::{Cpu, Encoder};
use kedge_serve::{Keys, Model, ServeOptions, serve};
use kedge_world::{Net, RealNet};
use prost::Message;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

#[allow(missing_docs, unreachable_pub, clippy::all, reason = "made from the .proto")]
mod proto {
    tonic::include_proto!("inference");
}

use proto::grpc_inference_service_client::GrpcInferenceServiceClient as Grpc;
use proto::infer_parameter::ParameterChoice;
use proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use proto::{InferParameter, InferTensorContents, ModelInferRequest};

async fn grpc(base: &str) -> Grpc<Channel> {
    Grpc::connect(base.to_owned()).await.unwrap()
}

fn parameters(of: &[(&str, ParameterChoice)]) -> HashMap<String, InferParameter> {
    let parameter = |choice: &ParameterChoice| InferParameter { parameter_choice: Some(choice.clone()) };
    of.iter().map(|(name, choice)| ((*name).to_owned(), parameter(choice))).collect()
}

/// A request for one greedy answer of eight tokens, with typed contents.
fn typed(input: &str, texts: &[&str]) -> ModelInferRequest {
    let contents = InferTensorContents {
        bytes_contents: texts.iter().map(|text| Bytes::from((*text).to_owned())).collect(),
        ..InferTensorContents::default()
    };
    ModelInferRequest {
        model_name: "demo".into(),
        id: "7".into(),
        inputs: vec![InferInputTensor {
            name: input.into(),
            datatype: "BYTES".into(),
            shape: vec![texts.len() as i64],
            parameters: HashMap::new(),
            contents: Some(contents),
        }],
        ..ModelInferRequest::default()
    }
}

fn raw(mut request: ModelInferRequest) -> ModelInferRequest {
    for input in &mut request.inputs {
        let elements = input.contents.take().unwrap().bytes_contents;
        let framed = elements.iter().flat_map(|e| [&u32::try_from(e.len()).unwrap().to_le_bytes()[..], e].concat());
        request.raw_input_contents.push(framed.collect());
    }
    request
}

/// Asks for text with a body of which nothing comes: the head of the answer.
async fn stopped(base: &str, headers: &[(&str, &str)]) -> http::HeaderMap {
    type Nothing = StreamBody<futures::stream::Pending<Result<Frame<Bytes>, std::convert::Infallible>>>;
    let client: Client<_, Nothing> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let request = http::Request::post(format!("{base}/inference.GRPCInferenceService/ModelInfer"));
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    let body = StreamBody::new(futures::stream::pending());
    client.request(request.body(body).unwrap()).await.unwrap().headers().clone()
}

const PROMPT: &str = "On Monday the driver";

async fn expected(served: &Served) -> String {
    let body = json!({"model": "demo", "prompt": PROMPT, "temperature": 0, "max_tokens": 8});
    served.answer(TEXT, body).await.1["choices"][0]["text"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn text_over_rest() {
    let served = Served::start().await;
    let expected = expected(&served).await;
    let (_, metadata) = served.get("/v2/models/demo").await;
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    assert_eq!(
        (&metadata["inputs"][0]["name"], &metadata["outputs"][0]["name"]),
        (&json!("text_input"), &json!("text_output"))
    );
    assert!(served.get("/v2").await.1.contains("\"generate\""));

    let how = json!({"temperature": 0, "max_tokens": 8});
    let input = json!({"name": "text_input", "datatype": "BYTES", "shape": [2], "data": [PROMPT, PROMPT]});
    let infer = json!({"id": "7", "inputs": [input], "outputs": [{"name": "text_output"}], "parameters": how});
    let (status, answer) = served.answer("/v2/models/demo/versions/1/infer", infer.clone()).await;
    let output = json!([{"name": "text_output", "datatype": "BYTES", "shape": [2], "data": [expected, expected]}]);
    let whole = json!({"id": "7", "model_name": "demo", "model_version": "1", "outputs": output});
    assert_eq!((status, answer), (200, whole));

    let generate = json!({"id": "8", "text_input": PROMPT, "parameters": how});
    let (status, answer) = served.answer("/v2/models/demo/generate", generate.clone()).await;
    let whole = json!({"id": "8", "model_name": "demo", "model_version": "1", "text_output": expected,
        "details": {"finish_reason": "length"}});
    assert_eq!((status, answer), (200, whole));
    let response = served.ask("/v2/models/demo/generate_stream", generate).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let pieces: Vec<Value> = text
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect();
    let told: String = pieces.iter().map(|piece| piece["text_output"].as_str().unwrap()).collect();
    assert_eq!((told, pieces.len() > 1), (expected, true));
    assert_eq!(pieces.last().unwrap()["details"]["finish_reason"], "length");

    for (path, body, says) in [
        ("generate", json!({"text_input": PROMPT, "parameters": {"temperature": 9}}), "parameters.temperature: "),
        ("generate", json!({"text_input": PROMPT, "stream": true}), "parameters.stream: "),
        ("generate_stream", json!({"text_input": 7}), "text_input"),
        ("generate", json!({"text_input": "word ".repeat(3000)}), "text_input: has "),
        ("infer", json!({"inputs": infer["inputs"], "parameters": {"top_p": "x"}}), "parameters.top_p: "),
        (
            "infer",
            json!({"inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["word ".repeat(3000)]}]}),
            "inputs[0].data: has ",
        ),
    ] {
        let (status, answer) = served.answer(&format!("/v2/models/demo/{path}"), body).await;
        assert!(status == 400 && answer["error"].as_str().unwrap().starts_with(says), "{path}: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn text_over_grpc() {
    let served = Served::start().await;
    let expected = expected(&served).await;
    let mut client = grpc(&served.base).await;
    assert!(client.server_live(proto::ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(proto::ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let ready = proto::ModelReadyRequest { name: "demo".into(), version: "1".into() };
    assert!(client.model_ready(ready).await.unwrap().into_inner().ready);
    let server = client.server_metadata(proto::ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!((server.name.as_str(), &server.extensions[..]), ("kedge", &["generate".to_owned()][..]));
    let asked = proto::ModelMetadataRequest { name: "demo".into(), version: String::new() };
    let model = client.model_metadata(asked).await.unwrap().into_inner();
    assert_eq!((model.versions, model.inputs[0].name.as_str()), (vec!["1".to_owned()], "text_input"));
    assert_eq!((model.outputs[0].datatype.as_str(), &model.outputs[0].shape[..]), ("BYTES", &[-1][..]));

    let how = parameters(&[
        ("temperature", ParameterChoice::DoubleParam(0.0)),
        ("max_tokens", ParameterChoice::Int64Param(8)),
        ("seed", ParameterChoice::Uint64Param(1)),
        ("logprobs", ParameterChoice::Int64Param(5)),
        ("best_effort", ParameterChoice::BoolParam(true)),
    ]);
    let request = ModelInferRequest { parameters: how.clone(), ..typed("text_input", &[PROMPT, PROMPT]) };
    let answer = client.model_infer(request.clone()).await.unwrap().into_inner();
    let said = &answer.outputs[0].contents.as_ref().unwrap().bytes_contents;
    assert_eq!((said[0].as_ref(), said[1].as_ref()), (expected.as_bytes(), expected.as_bytes()));
    assert_eq!((answer.id.as_str(), answer.model_version.as_str(), &answer.outputs[0].shape[..]), ("7", "1", &[2][..]));
    let ignored = Some(ParameterChoice::StringParam("logprobs, best_effort".into()));
    assert_eq!(answer.parameters["ignored"].parameter_choice, ignored);
    let answer = client.model_infer(raw(request.clone())).await.unwrap().into_inner();
    let framed = [&u32::try_from(expected.len()).unwrap().to_le_bytes()[..], expected.as_bytes()].concat();
    assert_eq!(answer.raw_output_contents, [Bytes::from([&framed[..], &framed].concat())]);
    assert_eq!(answer.outputs[0].contents, None);

    let changed = |change: &dyn Fn(&mut ModelInferRequest)| {
        let mut changed = request.clone();
        change(&mut changed);
        changed
    };
    let output = |name: &str| InferRequestedOutputTensor { name: name.into(), parameters: HashMap::new() };
    for (request, code, says) in [
        (changed(&|r| r.model_name = "other".into()), Code::NotFound, "\"other\" is not served here"),
        (changed(&|r| r.model_version = "2".into()), Code::NotFound, "has no version \"2\""),
        (changed(&|r| r.inputs[0].name = "text".into()), Code::InvalidArgument, "inputs[0].name: "),
        (changed(&|r| r.inputs[0].datatype = "FP32".into()), Code::InvalidArgument, "inputs[0].datatype: "),
        (changed(&|r| r.inputs[0].shape = vec![3]), Code::InvalidArgument, "inputs[0].shape: "),
        (changed(&|r| r.inputs[0].contents = None), Code::InvalidArgument, "inputs[0].contents: "),
        (changed(&|r| r.inputs.clear()), Code::InvalidArgument, "inputs: "),
        (changed(&|r| r.inputs[0].parameters = how.clone()), Code::InvalidArgument, "inputs[0].parameters: "),
        (changed(&|r| r.outputs = vec![output("embedding")]), Code::InvalidArgument, "outputs[0].name: "),
        (
            changed(&|r| r.raw_input_contents = vec![Bytes::from_static(b"\x01\0\0\0a")]),
            Code::InvalidArgument,
            "inputs[0].contents: ",
        ),
        (
            changed(&|r| r.parameters = parameters(&[("temperature", ParameterChoice::Int64Param(9))])),
            Code::InvalidArgument,
            "parameters.temperature: ",
        ),
        (
            changed(&|r| r.parameters = parameters(&[("temperature", ParameterChoice::DoubleParam(f64::NAN))])),
            Code::InvalidArgument,
            "parameters.temperature: must be a finite number",
        ),
        (
            {
                let mut cut = raw(request.clone());
                cut.raw_input_contents[0] = Bytes::from_static(b"\x09\0\0\0a");
                cut
            },
            Code::InvalidArgument,
            "raw_input_contents[0]: ",
        ),
        (
            {
                let mut cut = raw(request.clone());
                cut.raw_input_contents.push(Bytes::new());
                cut
            },
            Code::InvalidArgument,
            "raw_input_contents: ",
        ),
    ] {
        let status = client.model_infer(request).await.unwrap_err();
        assert!(status.code() == code && status.message().contains(says), "{says}: {status}");
    }
    // What is no text: a letter that is cut, and a half of a pair.
    let no_text = changed(&|r| {
        r.inputs[0].contents.as_mut().unwrap().bytes_contents[1] = Bytes::from_static(b"caf\xc3");
    });
    let mut raw_no_text = raw(request.clone());
    raw_no_text.raw_input_contents[0] = Bytes::from_static(b"\x01\0\0\0a\x03\0\0\0\xed\xa0\x80");
    for (request, says) in [
        (
            no_text,
            "inputs[0].contents.bytes_contents: element 1 is not UTF-8: incomplete utf-8 byte sequence from index 3",
        ),
        (raw_no_text, "raw_input_contents[0]: element 1 is not UTF-8: invalid utf-8 sequence of 1 bytes from index 0"),
    ] {
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, says));
    }
    let asked = proto::ModelMetadataRequest { name: "other".into(), version: String::new() };
    assert_eq!(client.model_metadata(asked).await.unwrap_err().code(), Code::NotFound);

    let long = ModelInferRequest { model_name: "m".repeat(1 << 20), ..typed("text_input", &["x"]) };
    assert_eq!(client.model_infer(long).await.unwrap_err().code(), Code::NotFound, "and the connection goes on");

    let large = typed("text_input", &[&"x".repeat(3 << 20)]);
    assert_eq!(client.model_infer(large).await.unwrap_err().code(), Code::ResourceExhausted);

    let full = Served::start_with(|options| options.bodies_bytes_max = 1000).await;
    let status = grpc(&full.base).await.model_infer(typed("text_input", &[&"x".repeat(1000)])).await.unwrap_err();
    let again = status.metadata().get("grpc-retry-pushback-ms");
    assert_eq!((status.code(), again.unwrap().to_str().unwrap()), (Code::ResourceExhausted, "1000"), "{status}");

    let broken = http::Request::post(format!("{}/inference.GRPCInferenceService/ModelInfer", served.base));
    let broken = broken.header("content-type", "application/grpc").header("te", "trailers");
    let http2: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let response = http2.request(broken.body(Full::from(&b"\0\0\0\0\x01\xff"[..])).unwrap()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], (Code::InvalidArgument as i32).to_string().as_str());

    // Fields that are texts in the protocol itself, by their numbers there.
    let of = |number: u8, text: &[u8]| [&[number << 3 | 2, text.len() as u8][..], text].concat();
    for (message, names) in [
        (of(1, b"de\xffmo"), "ModelInferRequest.model_name: "),
        (of(5, &of(1, b"\xed\xa0\x80")), "InferInputTensor.name: ModelInferRequest.inputs: "),
        (of(4, &[of(1, b"\xc0\xaf"), of(2, b"")].concat()), "ModelInferRequest.parameters: "),
    ] {
        let framed = [&[0, 0, 0, 0, message.len() as u8][..], &message].concat();
        let request = http::Request::post(format!("{}/inference.GRPCInferenceService/ModelInfer", served.base));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let response = http2.request(request.body(Full::from(framed)).unwrap()).await.unwrap();
        let said = response.headers()["grpc-message"].to_str().unwrap().replace("%20", " ");
        assert_eq!(response.headers()["grpc-status"], (Code::InvalidArgument as i32).to_string().as_str(), "{said}");
        assert!(said.contains(names) && said.contains("not UTF-8"), "{said}");
    }

    // A call has one message, whose fields count before they are read.
    let framed = |message: &[u8]| [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat();
    let one = framed(&typed("text_input", &[PROMPT]).encode_to_vec());
    let many = framed(&[&of(1, b"demo")[..], &[0x2a, 0].repeat(1_040_000)].concat());
    for (body, code, says) in [
        ([&one[..], &[0; 5]].concat(), Code::InvalidArgument, "a call has one message"),
        (one[..one.len() - 1].to_vec(), Code::InvalidArgument, "a call has one message"),
        (Vec::new(), Code::InvalidArgument, "this one has none"),
        (many, Code::ResourceExhausted, "bytes more once it is read"),
    ] {
        let request = http::Request::post(format!("{}/inference.GRPCInferenceService/ModelInfer", served.base));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let response = http2.request(request.body(Full::from(body)).unwrap()).await.unwrap();
        let said = response.headers()["grpc-message"].to_str().unwrap().replace("%20", " ");
        assert_eq!(response.headers()["grpc-status"], (code as i32).to_string().as_str(), "{said}");
        assert!(said.contains(says), "{said}");
    }

    let unknown = http::Request::post(format!("{}/inference.GRPCInferenceService/ModelList", served.base));
    let unknown = unknown.header("content-type", "application/grpc").header("te", "trailers");
    let before = served.get("/metrics").await.1;
    let response = http2.request(unknown.body(Full::from(&[0; 5][..])).unwrap()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], (Code::Unimplemented as i32).to_string().as_str());
    let of = |metrics: &str| -> u32 {
        let line = metrics.lines().find_map(|line| line.strip_prefix("kedge_infer_responses_total{code=\"404\"} "));
        line.unwrap().parse().unwrap()
    };
    assert_eq!(of(&served.get("/metrics").await.1), of(&before) + 1, "it is counted");

    // A body that never ends is waited for no longer than the request allows.
    let response = stopped(&served.base, &[("x-request-timeout", "0.2")]).await;
    assert_eq!(response["grpc-status"], (Code::DeadlineExceeded as i32).to_string().as_str());
    assert!(
        response["grpc-message"].to_str().unwrap().contains("longer%20than%20the%20request%20allows"),
        "{response:?}"
    );

    let long = [("ignore_eos", ParameterChoice::BoolParam(true)), ("max_tokens", ParameterChoice::Int64Param(900))];
    let late =
        ModelInferRequest { parameters: parameters(&long), ..typed("text_input", &[PROMPT; 16]) }.encode_to_vec();
    let framed = [&[0][..], &u32::try_from(late.len()).unwrap().to_be_bytes(), &late].concat();
    // Without tonic, whose clients look at the clock themselves.
    let late = http::Request::post(format!("{}/inference.GRPCInferenceService/ModelInfer", served.base));
    let late = late.header("content-type", "application/grpc").header("te", "trailers").header("grpc-timeout", "100m");
    let response = http2.request(late.body(Full::from(framed)).unwrap()).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], (Code::DeadlineExceeded as i32).to_string().as_str());
    served.idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_wants_a_key_and_knows_of_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "sesame").unwrap();
    let mut served = Served::start_with(|options| {
        options.keys = Some(Arc::new(Keys::open(&file).unwrap()));
        options.drain_timeout = Duration::from_secs(2);
    })
    .await;
    let mut client = grpc(&served.base).await;
    assert!(client.server_ready(proto::ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let short = || ModelInferRequest {
        parameters: parameters(&[("max_tokens", ParameterChoice::Int64Param(2))]),
        ..typed("text_input", &["a"])
    };
    assert_eq!(client.model_infer(short()).await.unwrap_err().code(), Code::Unauthenticated);
    let with_key = |request: ModelInferRequest| {
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("authorization", "Bearer sesame".parse().unwrap());
        request
    };
    client.model_infer(with_key(short())).await.unwrap();

    let body = endless(json!({"stream": true})).to_string();
    let stream =
        http::Request::post(format!("{}{}", served.base, common::CHAT)).header("authorization", "Bearer sesame");
    let stream = served.client.request(stream.body(body.into()).unwrap()).await.unwrap();
    drop(served.stop.take());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!client.server_ready(proto::ServerReadyRequest {}).await.unwrap().into_inner().ready);
    assert_eq!(client.model_infer(with_key(short())).await.unwrap_err().code(), Code::Unavailable);
    let response = stopped(&served.base, &[("authorization", "Bearer sesame")]).await;
    let code = (Code::Unavailable as i32).to_string();
    assert_eq!(response["grpc-status"], code.as_str(), "before its body is there");
    drop(stream);
    tokio::time::timeout(Duration::from_secs(20), served.serving).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn vectors_over_grpc() {
    let Some(directory) = std::env::var_os("KEDGE_MINILM").map(PathBuf::from) else {
        assert!(std::env::var_os("KEDGE_TEST_REQUIRE_MODEL").is_none(), "KEDGE_MINILM names no model");
        println!("skipped: no model (KEDGE_MINILM is not set)");
        return;
    };
    let encoder = Arc::new(Encoder::open(&directory, &Cpu::new(None).unwrap()).unwrap());
    let expected = encoder.encode(&["hello world"]).unwrap().remove(0).vector;
    let listener = RealNet.listen("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.address().unwrap());
    let options = ServeOptions::new("demo".into(), 0);
    tokio::spawn(serve(options, Model::Encoder(encoder), listener, std::future::pending()));
    let mut client = grpc(&base).await;
    let request = typed("text", &["hello world"]);
    let close = |numbers: &[f32]| numbers.iter().zip(&expected).all(|(a, e)| (a - e).abs() < 1e-6);
    let answer = client.model_infer(request.clone()).await.unwrap().into_inner();
    let numbers = &answer.outputs[0].contents.as_ref().unwrap().fp32_contents;
    assert!(answer.outputs[0].shape == [1, 384] && numbers.len() == 384 && close(numbers));
    let answer = client.model_infer(raw(request.clone())).await.unwrap().into_inner();
    let numbers: Vec<f32> = answer.raw_output_contents[0]
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    assert!(numbers.len() == 384 && close(&numbers));
    let wrong = ModelInferRequest { parameters: parameters(&[("top_k", ParameterChoice::Int64Param(1))]), ..request };
    let status = client.model_infer(wrong).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().starts_with("parameters.top_k"), "{status}");
}
