#ifndef CARAVAN_TESTS_COORDINATOR_OPENAI_OPENAI_TESTING_H_
#define CARAVAN_TESTS_COORDINATOR_OPENAI_OPENAI_TESTING_H_

// What the tests of OpenAI's API share: the text side of models/tiny-r1.

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/check.h"
#include "base/file.h"
#include "coordinator/http/http_error.h"
#include "coordinator/openai/generation_request.h"
#include "model/model_config.h"
#include "model/text_model.h"
#include "nlohmann/json.hpp"

namespace caravan {

// tiny-r1's.
inline constexpr int32_t kBos = 0;
inline constexpr int32_t kEos = 1;
inline constexpr int32_t kThinkBegin = 2042;
inline constexpr int32_t kThinkEnd = 2043;

// More than one token of tiny-r1's.
inline constexpr char kSmile[] = "\U0001F642";

inline const TextModel& TinyText() {
  static const TextModel& text = *[] {
    const std::string directory = CARAVAN_SOURCE_DIR "/models/tiny-r1";
    const std::string path = directory + "/config.json";
    absl::StatusOr<std::unique_ptr<TextModel>> loaded =
        TextModel::Load(directory, *ParseModelConfig(*ReadFile(path, 1 << 20), path));
    CARAVAN_CHECK(loaded.ok());
    return loaded->release();
  }();
  return text;
}

inline ServedModel TinyModel() {
  ServedModel model;
  model.name = "tiny-r1";
  model.text = &TinyText();
  model.context_tokens = 256;
  model.vocab_size = 2048;
  model.created = 1'700'000'000;
  return model;
}

/// Without a token that begins the text.
inline std::vector<int32_t> Ids(absl::string_view text) {
  absl::StatusOr<std::vector<int32_t>> ids = TinyText().tokenizer().Encode(text);
  CARAVAN_CHECK(ids.ok());
  return *std::move(ids);
}

/// {"messages": [{"role": "user", "content": "hi"}]}, with `more` fields.
inline nlohmann::json ChatBody(const nlohmann::json& more = nlohmann::json::object()) {
  nlohmann::json body =
      nlohmann::json::parse(R"({"messages": [{"role": "user", "content": "hi"}]})");
  body.update(more);
  return body;
}

/// {"prompt": "hi"}, with `more` fields.
inline nlohmann::json CompletionBody(const nlohmann::json& more = nlohmann::json::object()) {
  nlohmann::json body = {{"prompt", "hi"}};
  body.update(more);
  return body;
}

/// The name of the field that the client is told of; empty: none.
inline std::string ParamOf(const absl::Status& status) {
  if (status.ok()) return "";
  const nlohmann::json param = ErrorJson(status)["error"]["param"];
  return param.is_null() ? "" : param.get<std::string>();
}

}  // namespace caravan

#endif  // CARAVAN_TESTS_COORDINATOR_OPENAI_OPENAI_TESTING_H_
