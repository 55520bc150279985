#include "coordinator/openai/tokenize.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/openai/openai_testing.h"

namespace caravan {
namespace {

using nlohmann::json;

TEST(TokenizeTest, GivesTheTokensOfAText) {
  const absl::StatusOr<json> reply = Tokenize({{"prompt", "a bc"}}, TinyModel());
  ASSERT_TRUE(reply.ok()) << reply.status();
  const std::vector<int32_t> ids = Ids("<｜begin▁of▁sentence｜>a bc");
  EXPECT_EQ(*reply, (json{{"tokens", ids}, {"count", ids.size()}, {"max_model_len", 256}}));
}

TEST(TokenizeTest, LeavesOutTheBeginningIfAsked) {
  const auto reply = Tokenize({{"prompt", "a bc"}, {"add_special_tokens", false}}, TinyModel());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ((*reply)["tokens"], Ids("a bc"));
}

TEST(TokenizeTest, GivesTheTokensOfAConversation) {
  const auto reply = Tokenize(ChatBody(), TinyModel());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ((*reply)["tokens"], Ids("<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜>"));
}

TEST(TokenizeTest, DetokenizeUndoesIt) {
  const std::vector<std::string> texts = {
      "",
      "a",
      " a  b\n\tc",
      "na\u00EFve \u4F60\u597D \U0001F642\U0001F468\u200D\U0001F469",
      "<think>x</think>",
      std::string("a\0b", 3),
      "\uFFFD\uFEFF"};
  for (const std::string& text : texts) {
    const auto tokens = Tokenize({{"prompt", text}, {"add_special_tokens", false}}, TinyModel());
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    const auto back = Detokenize({{"tokens", (*tokens)["tokens"]}}, TinyModel());
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, (json{{"prompt", text}}));
  }
}

TEST(TokenizeTest, DetokenizeReplacesWhatIsNoCharacter) {
  const auto text = Detokenize({{"tokens", {Ids(kSmile)[0]}}}, TinyModel());
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ((*text)["prompt"], "\uFFFD");
}

TEST(TokenizeTest, BadFieldsAreNamed) {
  const auto expect_tokenize = [](const json& body, const std::string& param) {
    const absl::Status status = Tokenize(body, TinyModel()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << body;
    EXPECT_EQ(ParamOf(status), param) << body;
  };
  expect_tokenize(json::object(), "prompt");
  expect_tokenize({{"prompt", 5}}, "prompt");
  expect_tokenize({{"prompt", nullptr}}, "prompt");
  expect_tokenize({{"prompt", "a"}, {"add_special_tokens", 1}}, "add_special_tokens");
  expect_tokenize({{"messages", "a"}}, "messages");
  expect_tokenize({{"messages", {{{"role", "user"}}}}}, "messages[0].content");
  const auto expect_detokenize = [](const json& body, const std::string& param) {
    const absl::Status status = Detokenize(body, TinyModel()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << body;
    EXPECT_EQ(ParamOf(status), param) << body;
  };
  expect_detokenize(json::object(), "tokens");
  expect_detokenize({{"tokens", "a"}}, "tokens");
  expect_detokenize({{"tokens", {1, "a"}}}, "tokens[1]");
  expect_detokenize({{"tokens", {1, -1}}}, "tokens[1]");
  expect_detokenize({{"tokens", {2044}}}, "tokens[0]");  // padding of the vocabulary
}

TEST(TokenizeTest, AnotherModelIsNotFound) {
  const json body = {{"model", "x"}, {"prompt", "a"}, {"tokens", {1}}};
  EXPECT_EQ(Tokenize(body, TinyModel()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Detokenize(body, TinyModel()).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace caravan
