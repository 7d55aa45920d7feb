//! Signing a GET for S3. (AWS Signature Version 4; docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html.)
//!
//! Pure: the time is an argument.

use ring::{digest, hmac};

/// Who signs.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) key_id: String,
    pub(super) secret: String,
    /// Of credentials that end, such as those of a role.
    pub(super) session: Option<String>,
}

/// What credentials are for.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

/// A GET as it is signed.
pub(super) struct Signed<'a> {
    /// As it is sent, encoded.
    pub(super) path: &'a str,
    /// As it is sent, encoded and in order.
    pub(super) query: &'a str,
    /// By lower-case name, in order.
    pub(super) headers: &'a [(&'a str, &'a str)],
    /// The digest of the body.
    pub(super) body: &'a str,
}

/// The SHA-256 of a body that is empty.
pub(super) const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The value of `Authorization`; `time` is as in `x-amz-date` (`20130524T000000Z`).
pub(super) fn authorization(signed: &Signed<'_>, who: &Credentials, scope: Scope<'_>, time: &str) -> String {
    let names: Vec<&str> = signed.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let headers: String = signed.headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let request = format!("GET\n{}\n{}\n{headers}\n{names}\n{}", signed.path, signed.query, signed.body);
    let day = &time[..8];
    let place = format!("{day}/{}/{}/aws4_request", scope.region, scope.service);
    let hash = hex::encode(digest::digest(&digest::SHA256, request.as_bytes()));
    let text = format!("AWS4-HMAC-SHA256\n{time}\n{place}\n{hash}");
    let mut key = format!("AWS4{}", who.secret).into_bytes();
    for step in [day, scope.region, scope.service, "aws4_request", &text] {
        let with = hmac::Key::new(hmac::HMAC_SHA256, &key);
        key = hmac::sign(&with, step.as_bytes()).as_ref().to_vec();
    }
    let signature = hex::encode(key);
    format!("AWS4-HMAC-SHA256 Credential={}/{place},SignedHeaders={names},Signature={signature}", who.key_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signature(signed: &Signed<'_>, key_id: &str, secret: &str, service: &str, time: &str) -> String {
        let who = Credentials { key_id: key_id.into(), secret: secret.into(), session: None };
        let text = authorization(signed, &who, Scope { region: "us-east-1", service }, time);
        text.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// The suite that AWS published (`aws-sig-v4-test-suite`), the cases that are GETs.
    #[test]
    fn the_published_suite() {
        let check = |path: &str, query: &str, more: &[(&str, &str)], expected: &str| {
            let mut headers = vec![("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
            headers.extend(more);
            headers.sort_unstable();
            let signed = Signed { path, query, headers: &headers, body: EMPTY };
            let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
            let found = signature(&signed, "AKIDEXAMPLE", secret, "service", "20150830T123600Z");
            assert_eq!(found, expected, "{path}?{query}");
        };
        // get-vanilla
        check("/", "", &[], "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31");
        // get-vanilla-query-order-key-case
        check(
            "/",
            "Param1=value1&Param2=value2",
            &[],
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        );
        // get-utf8
        check("/%E1%88%B4", "", &[], "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85");
    }

    /// The examples in the S3 documentation.
    #[test]
    fn the_examples_of_s3() {
        let check = |path: &str, query: &str, more: &[(&str, &str)], expected: &str| {
            let mut headers = vec![
                ("host", "examplebucket.s3.amazonaws.com"),
                ("x-amz-content-sha256", EMPTY),
                ("x-amz-date", "20130524T000000Z"),
            ];
            headers.extend(more);
            headers.sort_unstable();
            let signed = Signed { path, query, headers: &headers, body: EMPTY };
            let secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
            let found = signature(&signed, "AKIAIOSFODNN7EXAMPLE", secret, "s3", "20130524T000000Z");
            assert_eq!(found, expected, "{path}?{query}");
        };
        let range = [("range", "bytes=0-9")];
        check("/test.txt", "", &range, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
        check("/", "lifecycle=", &[], "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
        check("/", "max-keys=2&prefix=J", &[], "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
    }
}
