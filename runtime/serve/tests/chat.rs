//! The decoder that we trained, over a real socket: whole answers and streams, their bounds, and who leaves early.

#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::atomic::Ordering;

use common::{CHAT, Served, TEXT, chat, folder};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use kedge_engine::DecoderOptions;
use serde_json::{Value, json};

/// The talks of which an independent program wrote down the greedy answers.
fn talks() -> Vec<(Value, String, usize)> {
    let reference: Value = serde_json::from_slice(&std::fs::read(folder().join("reference.json")).unwrap()).unwrap();
    let talk = |chat: &Value| {
        let (text, prompt) = (chat["greedy_text"].as_str().unwrap(), chat["ids"].as_array().unwrap().len());
        (chat["messages"].clone(), text.to_owned(), prompt)
    };
    reference["chats"].as_array().unwrap().iter().map(talk).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_the_models_whole_and_in_pieces() {
    let served = Served::start().await;
    for (messages, expected, prompt) in talks() {
        let (status, answer) = served.answer(CHAT, chat(&messages, json!({}))).await;
        let choice = &answer["choices"][0];
        assert_eq!((status, choice["message"]["content"].as_str().unwrap()), (200, expected.as_str()), "{answer}");
        assert_eq!((&answer["object"], &choice["message"]["role"]), (&json!("chat.completion"), &json!("assistant")));
        assert_eq!(answer["usage"]["prompt_tokens"], prompt);

        let more = json!({"stream": true, "stream_options": {"include_usage": true}});
        let pieces = served.pieces(CHAT, chat(&messages, more)).await;
        assert_eq!(pieces[0]["choices"][0]["delta"]["role"], "assistant");
        let text = |piece: &Value| piece["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned();
        assert_eq!(pieces.iter().map(text).collect::<String>(), expected);
        let (usage, last) = (&pieces[pieces.len() - 1], &pieces[pieces.len() - 2]);
        assert_eq!(usage["usage"]["prompt_tokens"], prompt);
        assert_eq!(last["choices"][0]["finish_reason"], choice["finish_reason"]);
        assert!(pieces.iter().all(|piece| piece["id"] == pieces[0]["id"]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_do_what_they_say() {
    let served = Served::start().await;
    let (messages, expected, _) = talks().remove(0);
    let word = expected.split_whitespace().nth(2).unwrap().to_owned();
    let (_, answer) = served.answer(CHAT, chat(&messages, json!({"stop": word}))).await;
    let (before, _) = expected.split_once(word.as_str()).unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], before);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");

    let (_, answer) =
        served.answer(CHAT, chat(&messages, json!({"max_tokens": 2, "logprobs": true, "top_logprobs": 3}))).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let told = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!((told.len(), told[0]["top_logprobs"].as_array().unwrap().len()), (2, 3));
    assert_eq!(told[0]["token"], told[0]["top_logprobs"][0]["token"], "greedy is the likeliest");
    assert!(told[0]["logprob"].as_f64().unwrap() <= 0.0);

    let warm = json!({"model": "demo", "prompt": "On", "n": 3, "temperature": 1.5, "seed": 5, "max_tokens": 12});
    let (_, one) = served.answer(TEXT, warm.clone()).await;
    let (_, two) = served.answer(TEXT, warm).await;
    let texts = |answer: &Value| {
        answer["choices"].as_array().unwrap().iter().map(|choice| choice["text"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(texts(&one), texts(&two), "a seed gives the same again");
    assert!(texts(&one).iter().any(|text| *text != texts(&one)[0]), "{one}");

    let prompt = "On Monday the driver";
    let body = json!({"model": "demo", "prompt": [prompt, prompt], "temperature": 0, "max_tokens": 5});
    let (_, answer) = served.answer(TEXT, body).await;
    assert_eq!((&answer["object"], &answer["usage"]["completion_tokens"]), (&json!("text_completion"), &json!(10)));
    assert_eq!(answer["choices"][0]["text"], answer["choices"][1]["text"]);

    let (_, tokens) = served.answer("/tokenize", json!({"prompt": prompt, "add_special_tokens": false})).await;
    let (_, back) = served.answer("/detokenize", json!({"tokens": tokens["tokens"]})).await;
    assert_eq!(back["prompt"], prompt);

    let harmless = json!({"tools": [], "min_tokens": 0, "echo": false, "best_of": 1, "guided_json": null,
        "chat_template_kwargs": {}, "skip_special_tokens": true});
    let response = served.ask(CHAT, chat(&messages, harmless)).await;
    assert_eq!((response.status().as_u16(), response.headers().get("warning")), (200, None));
    let named = json!([{"role": "user", "content": "hello", "name": "till-3"}]);
    let body = json!({"messages": named, "nonsense": 1, "add_special_tokens": false, "model": null});
    let response = served.ask("/tokenize", body).await;
    let warnings = response.headers().get_all("warning").iter().map(|warning| warning.to_str().unwrap().to_owned());
    let expected = ["messages.name", "nonsense"].map(|field| format!("299 kedge \"{field} is ignored\""));
    assert_eq!((response.status().as_u16(), warnings.collect::<Vec<_>>()), (200, expected.to_vec()));

    let sent = json!({"cache_prompt": true, "store": false, "metadata": {"a": "b"}, "parallel_tool_calls": true,
        "service_tier": "auto", "user": "till-3", "nothing": null, "chat_template_kwargs": {"enable_thinking": false}});
    let response = served.ask(CHAT, chat(&messages, sent)).await;
    assert_eq!(response.status(), 200);
    let warnings: Vec<&str> =
        response.headers().get_all("warning").iter().map(|warning| warning.to_str().unwrap()).collect();
    let expected = ["cache_prompt", "metadata", "parallel_tool_calls", "service_tier", "store"];
    assert_eq!(warnings, expected.map(|field| format!("299 kedge \"{field} is ignored\"")));
    let fields =
        ["dry_multiplier", "dynatemp_range", "mirostat", "repeat_penalty", "tfs_z", "typical_p", "xtc_probability"];
    let samplers: serde_json::Map<String, Value> =
        fields.map(|field| (field.to_owned(), json!(0.9))).into_iter().collect();
    let response = served.ask(CHAT, chat(&messages, Value::Object(samplers))).await;
    let warnings: Vec<&str> =
        response.headers().get_all("warning").iter().map(|warning| warning.to_str().unwrap()).collect();
    assert_eq!(warnings, fields.map(|field| format!("299 kedge \"{field} is ignored\"")));
    let part = json!({"type": "text", "text": "hello", "cache_control": {}});
    let named = json!([{"role": "user", "content": [part], "name": "till-3", "audio": null}]);
    let response = served.ask(CHAT, chat(&named, json!({"max_tokens": 1}))).await;
    let warnings: Vec<&str> =
        response.headers().get_all("warning").iter().map(|warning| warning.to_str().unwrap()).collect();
    let expected = ["messages.content.cache_control", "messages.name"];
    assert_eq!(warnings, expected.map(|field| format!("299 kedge \"{field} is ignored\"")));
    let all: Vec<u32> = (0..2048).collect();
    let at_once = json!({"model": "demo", "prompt": "On", "logprobs": 1, "stop_token_ids": all});
    let (_, answer) = served.answer(TEXT, at_once).await;
    assert_eq!(answer["choices"][0]["logprobs"]["tokens"], json!([]), "asked for, and none: {answer}");
    let many: serde_json::Map<String, Value> = (0..500).map(|field| (format!("f{field}"), json!(1))).collect();
    let response = served.ask(CHAT, chat(&messages, Value::Object(many))).await;
    assert_eq!((response.status().as_u16(), response.headers().get_all("warning").iter().count()), (200, 17));
    let (_, answer) = served.answer(CHAT, chat(&messages, json!({"ignore_eos": true, "max_tokens": 100}))).await;
    assert_eq!(answer["usage"]["completion_tokens"], 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_not_ended_before_it_is_as_long_as_was_asked() {
    let served = Served::start().await;
    let (messages, expected, _) = talks().remove(0);
    let word = expected.split_whitespace().next().unwrap();
    for more in
        [json!({}), json!({"temperature": 1.5, "seed": 7, "n": 4}), json!({"stop": word, "stop_token_ids": [5]})]
    {
        let mut more = more;
        (more["min_tokens"], more["max_tokens"]) = (json!(100), json!(101));
        let (_, answer) = served.answer(CHAT, chat(&messages, more.clone())).await;
        let made = answer["usage"]["completion_tokens"].as_u64().unwrap();
        let each = made / more["n"].as_u64().unwrap_or(1);
        assert!((100..=101).contains(&each), "{more}: {answer}");
    }
    let (_, answer) = served.answer(CHAT, chat(&messages, json!({"min_tokens": 3, "max_tokens": 100}))).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.starts_with(&expected), "it is longer by itself: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_does_not_say_the_model_s_files_say() {
    let served = Served::start().await;
    let (messages, expected, _) = talks().remove(0);
    for _ in 0..3 {
        let (_, answer) = served.answer(CHAT, json!({"model": "demo", "messages": messages})).await;
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(text.starts_with(&expected), "do_sample is false: {text}");
    }
    for (path, body) in [(CHAT, json!({"messages": messages})), (TEXT, json!({"prompt": "On"}))] {
        let mut body = body;
        (body["model"], body["ignore_eos"]) = (json!("demo"), json!(true));
        let (_, answer) = served.answer(path, body).await;
        assert_eq!(answer["usage"]["completion_tokens"], 128, "max_new_tokens");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_counted_once_a_prompt_however_it_is_answered() {
    let served = Served::start().await;
    let (messages, expected, prompt) = talks().remove(0);
    let told = json!({"role": "system", "content": "You keep the books of the mill. ".repeat(8)});
    let messages: Value = std::iter::once(told).chain(messages.as_array().unwrap().clone()).collect();
    let (_, first) = served.answer(CHAT, chat(&messages, json!({}))).await;
    let usage = |answer: &Value| {
        let usage = &answer["usage"];
        (usage["prompt_tokens"].as_u64().unwrap(), usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
    };
    let (all, none) = usage(&first);
    assert!(none == 0 && all > 64 && all > prompt as u64, "{first}");
    let text = first["choices"][0]["message"]["content"].as_str().unwrap();
    let word = text.split_whitespace().next().unwrap_or(&expected);
    let mut counted = all;
    for more in [json!({"n": 4}), json!({"stop": word}), json!({"n": 4, "stop": word})] {
        let (_, answer) = served.answer(CHAT, chat(&messages, more.clone())).await;
        let (again, cached) = usage(&answer);
        assert!(again == all && cached > 0 && cached < all, "{more}: {answer}");
        counted += all;
    }
    let (_, metrics) = served.get("/metrics").await;
    assert!(metrics.contains(&format!("vllm:prompt_tokens_total{{model_name=\"demo\"}} {counted}\n")), "{metrics}");
}

/// The first number of that name, whatever its labels are.
fn number(metrics: &str, name: &str) -> f64 {
    let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap_or_else(|| panic!("{name}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_vllm_s_names_and_are_the_same_for_all_who_ask_at_once() {
    let served = Served::start().await;
    let hello = json!([{"role": "user", "content": "hello"}]);
    for more in [json!({"max_tokens": 3, "n": 2, "ignore_eos": true}), json!({"stop": "e"})] {
        assert_eq!(served.answer(CHAT, chat(&hello, more)).await.0, 200);
    }
    let long = json!({"stream": true, "max_tokens": 900, "ignore_eos": true});
    let mut left = served.ask(CHAT, chat(&hello, long)).await;
    left.frame().await.unwrap().unwrap();
    drop(left);
    served.idle().await;
    let asked = futures::future::join_all((0..8).map(|_| served.get("/metrics"))).await;
    let metrics = &asked[0].1;
    for line in [
        "vllm:request_success_total{model_name=\"demo\",finished_reason=\"length\"} 2",
        "vllm:request_success_total{model_name=\"demo\",finished_reason=\"stop\"} 1",
        "vllm:request_success_total{model_name=\"demo\",finished_reason=\"abort\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"demo\"} 3",
        "vllm:num_preemptions_total{model_name=\"demo\"} 0",
        "vllm:num_requests_running{model_name=\"demo\"} 0",
        "vllm:num_requests_waiting{model_name=\"demo\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"demo\"} 0.0",
        "kedge_infer_connections_refused_total 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    let between = number(metrics, "vllm:inter_token_latency_seconds_count");
    let made = number(metrics, "vllm:generation_tokens_total");
    assert!(between >= 4.0 && between <= made - 4.0, "{between} between {made}");
    // Four answers to three prompts.
    let (read, sought) =
        (number(metrics, "vllm:prompt_tokens_total"), number(metrics, "vllm:prefix_cache_queries_total"));
    assert!(sought == read / 3.0 * 4.0 && number(metrics, "vllm:prefix_cache_hits_total") < sought, "{metrics}");
    assert!(asked.iter().all(|(_, text)| number(text, "vllm:generation_tokens_total") == made));
    assert!(asked.iter().all(|(_, text)| text.contains("kedge_infer_device{device=\"cpu\"")));
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_say_of_answers_that_ended_by_themselves_what_they_took() {
    let served = Served::start().await;
    let hello = json!([{"role": "user", "content": "hello"}]);
    let (_, answer) = served.answer(CHAT, chat(&hello, json!({"max_tokens": 40, "ignore_eos": true}))).await;
    let prompt = answer["usage"]["prompt_tokens"].as_f64().unwrap();
    let (_, metrics) = served.get("/metrics").await;
    let sum = |metrics: &str, name: &str| number(metrics, &format!("vllm:{name}_sum"));
    let (decode, between) =
        (sum(&metrics, "request_decode_time_seconds"), sum(&metrics, "inter_token_latency_seconds"));
    assert!(decode > 0.0 && (decode - between).abs() < 1e-6, "all from one token to the next: {decode}, {between}");
    assert!(decode < sum(&metrics, "e2e_request_latency_seconds"), "{metrics}");
    let each = sum(&metrics, "request_time_per_output_token_seconds");
    assert!((each * 39.0 - decode).abs() < 1e-6, "{each} of {decode}");
    let [queue, prefill, inference] =
        ["queue", "prefill", "inference"].map(|part| sum(&metrics, &format!("request_{part}_time_seconds")));
    assert!(prefill > 0.0 && (prefill + decode - inference).abs() < 1e-6, "{prefill} {decode} {inference}");
    assert!(queue + inference < sum(&metrics, "e2e_request_latency_seconds"), "{metrics}");

    // Two answers to one prompt, one whose first token is its last, one of two prompts, and two that are none.
    for more in [json!({"max_tokens": 3, "n": 2, "ignore_eos": true}), json!({"max_tokens": 1}), json!({"n": 0})] {
        served.answer(CHAT, chat(&hello, more)).await;
    }
    let text = json!({"model": "demo", "prompt": [[5, 6], [7]], "max_tokens": 2, "ignore_eos": true});
    assert_eq!(served.answer(TEXT, text).await.0, 200);
    let long = json!({"stream": true, "max_tokens": 900, "ignore_eos": true});
    let mut left = served.ask(CHAT, chat(&hello, long)).await;
    left.frame().await.unwrap().unwrap();
    drop(left);
    served.idle().await;
    let (_, metrics) = served.get("/metrics").await;
    for (name, count) in [
        ("request_prompt_tokens", 6),
        ("request_generation_tokens", 6),
        ("request_max_num_generation_tokens", 5),
        ("request_queue_time_seconds", 6),
        ("request_prefill_time_seconds", 6),
        ("request_inference_time_seconds", 6),
        ("request_decode_time_seconds", 6),
        ("request_time_per_output_token_seconds", 5),
    ] {
        assert_eq!(number(&metrics, &format!("vllm:{name}_count")), f64::from(count), "{name}");
    }
    assert_eq!(sum(&metrics, "request_prompt_tokens"), 4.0 * prompt + 2.0 + 1.0);
    assert_eq!(sum(&metrics, "request_generation_tokens"), 40.0 + 3.0 + 3.0 + 1.0 + 2.0 + 2.0);
    assert_eq!(sum(&metrics, "request_max_num_generation_tokens"), 40.0 + 3.0 + 1.0 + 2.0 + 2.0);
    for (bucket, count) in [("1.0", 1), ("2.0", 3), ("5.0", 5), ("20.0", 5), ("50.0", 6), ("500000.0", 6)] {
        let line = format!("vllm:request_generation_tokens_bucket{{model_name=\"demo\",le=\"{bucket}\"}} {count}");
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
    // What a dashboard of vLLM's sums up over: buckets that it has, too.
    for (name, le) in [("request_decode_time_seconds", "7680.0"), ("e2e_request_latency_seconds", "0.3")] {
        assert!(
            metrics.contains(&format!("vllm:{name}_bucket{{model_name=\"demo\",le=\"{le}\"}}")),
            "{name}: {metrics}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_much_waits_for_it_to_be_read() {
    let served = Served::start().await;
    let long = json!({"model": "demo", "prompt": vec![7; 900], "max_tokens": 3, "ignore_eos": true});
    assert_eq!(served.answer(TEXT, long).await.0, 200);
    let (_, metrics) = served.get("/metrics").await;
    let sum = |name: &str| number(&metrics, &format!("vllm:request_{name}_seconds_sum"));
    let (prefill, each) = (sum("prefill_time"), sum("time_per_output_token"));
    assert!(prefill > 3.0 * each && sum("queue_time") < prefill, "{prefill} for 900, {each} for one");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_another_waits_in_the_queue() {
    let options = DecoderOptions { tokens_kept: Some(8192), running_max: 1, ..DecoderOptions::default() };
    let served = Served::start_of(&folder().join("model"), options, |_| {}).await;
    let long = json!({"max_tokens": 60, "n": 2, "ignore_eos": true});
    served.answer(CHAT, chat(&json!([{"role": "user", "content": "hello"}]), long)).await;
    let (_, metrics) = served.get("/metrics").await;
    let sum = |part: &str| number(&metrics, &format!("vllm:request_{part}_time_seconds_sum"));
    // The second waits until the first has ended.
    assert!(sum("queue") > sum("inference") / 4.0, "{metrics}");
    assert!(sum("queue") < sum("inference"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_answered_is_refused_by_field() {
    let served = Served::start().await;
    let hello = json!([{"role": "user", "content": "hello"}]);
    for (more, status, param) in [
        (json!({"model": "other"}), 404, "model"),
        (json!({"temperature": 3}), 400, "temperature"),
        (json!({"temperature": "warm"}), 400, "temperature"),
        (json!({"n": 0}), 400, "n"),
        (json!({"max_tokens": 0}), 400, "max_tokens"),
        (json!({"stop": [""]}), 400, "stop"),
        (json!({"stop": "a".repeat(1025)}), 400, "stop"),
        // Two and a quarter thousand times the context, of which no more than the first piece is tokenized.
        (json!({"messages": [{"role": "user", "content": "a ".repeat(900_000)}]}), 400, "messages"),
        (json!({"top_logprobs": 2}), 400, "top_logprobs"),
        (json!({"stop_token_ids": 7}), 400, "stop_token_ids"),
        (json!({"stop_token_ids": [100_000_000]}), 400, "stop_token_ids[0]"),
        (json!({"logit_bias": {"x": 1}}), 400, "logit_bias"),
        (json!({"logit_bias": {"+1": 1}}), 400, "logit_bias"),
        (json!({"logit_bias": {"1": 1, "01": 1}}), 400, "logit_bias"),
        (json!({"logit_bias": {"4294967295": 1}}), 400, "logit_bias"),
        (json!({"top_k": 1.5}), 400, "top_k"),
        (json!({"priority": 0.5}), 400, "priority"),
        (
            json!({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}),
            400,
            "messages[0].tool_calls",
        ),
        (json!({"tools": [{}]}), 400, "tools"),
        (json!({"response_format": {"type": "json_object"}}), 400, "response_format"),
        (json!({"guided_json": {"type": "object"}}), 400, "guided_json"),
        (json!({"chat_template_kwargs": []}), 400, "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"bos_token": ""}}), 400, "chat_template_kwargs.bos_token"),
        (json!({"min_tokens": 41}), 400, "min_tokens"),
        (json!({"min_tokens": "many"}), 400, "min_tokens"),
        (json!({"user": 7}), 400, "user"),
        (json!({"stream": true, "stream_options": []}), 400, "stream_options"),
        (json!({"stream": true, "stream_options": {"include_usage": 1}}), 400, "stream_options.include_usage"),
        (json!({"stream_options": {}}), 400, "stream_options"),
        (json!({"messages": []}), 400, "messages"),
        (json!({"messages": [{"role": "user"}]}), 400, "messages[0].content"),
        (json!({"messages": [{"role": "wizard", "content": "x"}]}), 400, "messages"),
        (json!({"messages": [{"role": "user", "content": "word ".repeat(3000)}]}), 400, "messages"),
    ] {
        let (found, answer) = served.answer(CHAT, chat(&hello, more.clone())).await;
        assert_eq!((found, answer["error"]["param"].as_str()), (status, Some(param)), "{more}: {answer}");
    }
    for (path, body, status, param) in [
        (TEXT, json!({"model": "demo", "prompt": [999_999]}), 400, "prompt[0]"),
        (TEXT, json!({"model": "demo", "prompt": [[1], [2, 999_999]]}), 400, "prompt[1][1]"),
        (TEXT, json!({"model": "demo", "prompt": [[]]}), 400, "prompt[0]"),
        (TEXT, json!({"model": "demo", "prompt": vec!["On"; 16], "n": 9}), 400, "n"),
        ("/tokenize", json!({"prompt": "a", "model": "other"}), 404, "model"),
        ("/tokenize", json!({"prompt": "a", "add_special_tokens": "no"}), 400, "add_special_tokens"),
        ("/tokenize", json!({"prompt": "a", "messages": hello}), 400, "messages"),
        ("/tokenize", json!({"prompt": "a", "return_token_strs": true}), 400, "return_token_strs"),
        ("/tokenize", json!({"messages": hello, "add_special_tokens": true}), 400, "add_special_tokens"),
        ("/tokenize", json!({"messages": hello, "add_generation_prompt": false}), 400, "add_generation_prompt"),
        ("/tokenize", json!({"messages": hello, "tools": [{}]}), 400, "tools"),
        ("/tokenize", json!({}), 400, "messages"),
        ("/detokenize", json!({"tokens": [1, 999_999]}), 400, "tokens[1]"),
        ("/detokenize", json!({"tokens": "a"}), 400, "tokens"),
        ("/detokenize", json!({}), 400, "tokens"),
    ] {
        let (found, answer) = served.answer(path, body.clone()).await;
        assert_eq!((found, answer["error"]["param"].as_str()), (status, Some(param)), "{path} {body}: {answer}");
    }
    let (status, answer) = served.answer("/v1/embeddings", json!({"model": "demo", "input": "a"})).await;
    assert_eq!(status, 404, "{answer}");
    let long = json!([{"role": "user", "content": "word ".repeat(3000)}]);
    let (_, answer) = served.answer(CHAT, chat(&long, json!({}))).await;
    assert_eq!(answer["error"]["code"], "context_length_exceeded", "{answer}");
    let (_, answer) = served.answer(CHAT, chat(&json!([{"role": "wizard", "content": "x"}]), json!({}))).await;
    let says = "messages: chat template refuses this: the demo model knows the roles system, user and assistant only";
    assert_eq!(answer["error"]["message"], says);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_is_computed_for_no_longer() {
    let mut served = Served::start().await;
    let messages = json!([{"role": "user", "content": "hello"}]);
    let endless = chat(&messages, json!({"stream": true, "ignore_eos": true, "max_tokens": 900, "n": 8}));
    let mut response = served.ask(CHAT, endless).await;
    response.frame().await.unwrap().unwrap();
    drop(response);
    // The client keeps the connection for others; it goes with the client.
    served.client = Client::builder(TokioExecutor::new()).build_http();
    served.idle().await;
    let decoder = &served.decoder;
    assert_eq!(decoder.figures().running.load(Ordering::Relaxed), 0);
    let made = decoder.figures().made_tokens.load(Ordering::Relaxed);
    assert!(made < 8 * 900, "{made}");
}
