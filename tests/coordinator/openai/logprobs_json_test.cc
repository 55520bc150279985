#include "coordinator/openai/logprobs_json.h"

#include <limits>

#include "gtest/gtest.h"
#include "tests/coordinator/openai/openai_testing.h"

namespace caravan {
namespace {

using nlohmann::json;

int32_t Id(const std::string& text) { return Ids(text).front(); }

TEST(LogprobsJsonTest, OfAChat) {
  const ReplyToken thought = {{Id("a"), -0.5f, {}}, true, 0};
  const ReplyToken answer = {{Id("b"), -1, {{Id("c"), -0.25f}, {Id("b"), -1}}}, true, 0};
  EXPECT_EQ(ChatLogprobsJson(TinyText().tokenizer(), {thought}, {answer}), json::parse(R"({
        "content": [{"token": "b", "logprob": -1.0, "bytes": [98], "top_logprobs": [
            {"token": "c", "logprob": -0.25, "bytes": [99]},
            {"token": "b", "logprob": -1.0, "bytes": [98]}]}],
        "reasoning_content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}],
        "refusal": null})"));
}

TEST(LogprobsJsonTest, OfACompletion) {
  const std::vector<ReplyToken> tokens = {
      {{Id("a"), 0, {}}, false, 0},  // the first of all: nothing is before it
      {{Id("b"), -1, {{Id("c"), -0.25f}}}, true, 1},
      {{Id("c"), -0.25f, {{Id("c"), -0.25f}}}, true, 2},
  };
  EXPECT_EQ(CompletionLogprobsJson(TinyText().tokenizer(), tokens), json::parse(R"({
        "tokens": ["a", "b", "c"],
        "token_logprobs": [null, -1.0, -0.25],
        "top_logprobs": [null, {"b": -1.0, "c": -0.25}, {"c": -0.25}],
        "text_offset": [0, 1, 2]})"));
  EXPECT_EQ(CompletionLogprobsJson(TinyText().tokenizer(), {}), json::parse(R"({
        "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []})"));
}

TEST(LogprobsJsonTest, PartsOfCharactersShowTheirBytes) {
  const int32_t part = Ids(kSmile)[0];
  const std::string bytes(TinyText().tokenizer().TokenBytes(part));
  json list = json::array();
  for (const char byte : bytes) list.push_back(static_cast<uint8_t>(byte));
  const std::vector<ReplyToken> tokens = {{{part, -1, {}}, true, 0}};
  const json entry = ChatLogprobsJson(TinyText().tokenizer(), {}, tokens)["content"][0];
  EXPECT_EQ(entry["token"], "\uFFFD");
  EXPECT_EQ(entry["bytes"], list);
  ASSERT_EQ(bytes.substr(0, 1), "\xF0");
  const std::string spelt = CompletionLogprobsJson(TinyText().tokenizer(), tokens)["tokens"][0];
  EXPECT_EQ(spelt.substr(0, 10), "bytes:\\xf0");
}

TEST(LogprobsJsonTest, WhatCannotBeIsAFiniteNumber) {
  const float never = -std::numeric_limits<float>::infinity();
  const std::vector<ReplyToken> tokens = {{{Id("a"), never, {{Id("b"), never}}}, true, 0}};
  EXPECT_EQ(ChatLogprobsJson(TinyText().tokenizer(), {}, tokens)["content"][0]["logprob"], -9999);
  const json completion = CompletionLogprobsJson(TinyText().tokenizer(), tokens);
  EXPECT_EQ(completion["token_logprobs"][0], -9999);
  EXPECT_EQ(completion["top_logprobs"][0]["b"], -9999);
}

}  // namespace
}  // namespace caravan
