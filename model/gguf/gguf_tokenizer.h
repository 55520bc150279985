#ifndef CARAVAN_MODEL_GGUF_GGUF_TOKENIZER_H_
#define CARAVAN_MODEL_GGUF_GGUF_TOKENIZER_H_

// The tokenizer inside a GGUF file (tokenizer.ggml.*), as the tokenizer.json that model/tokenizer.h
// loads and the tokenizer_config.json that model/chat_template.h does.

#include <string>

#include "absl/status/statusor.h"
#include "model/gguf/gguf_metadata.h"

namespace caravan {

/// A tokenizer.json's text: byte-level BPE of tokenizer.ggml.tokens and merges, with the
/// pre-tokenizer that tokenizer.ggml.pre names (deepseek-v3: DeepSeek-V3, R1; deepseek-llm:
/// DeepSeek-V2 and V2-Lite). It encodes as the tokenizer.json that the GGUF was made from.
///
/// token_type says which tokens are added ones: control tokens become special, those that the user
/// defined do not, unused ones (padding of the vocabulary) are left out. GGUF's writers call
/// everything of the form <｜...｜> a control token, so IsSpecial holds of more tokens than with
/// the model's own tokenizer.json: of <｜User｜>, for one.
///
/// Errors: Unimplemented - a kind of tokenizer that Caravan does not run (Kimi-K2's is one);
///         InvalidArgument - a key that is missing or malformed: token_type not as long as tokens,
///         a type that is none, a token that is empty or repeated. Each names the file and the key.
///         (What Tokenizer::Load refuses of the text it names as tokenizer.json does.)
absl::StatusOr<std::string> GgufTokenizerJson(const GgufMetadata& metadata);

/// A tokenizer_config.json's text: chat_template, bos_token, eos_token and add_bos_token, as far as
/// the metadata have them. Errors: InvalidArgument - one of wrong type, or a token id that is none.
///         Names the file and the key.
absl::StatusOr<std::string> GgufTokenizerConfigJson(const GgufMetadata& metadata);

}  // namespace caravan

#endif  // CARAVAN_MODEL_GGUF_GGUF_TOKENIZER_H_
