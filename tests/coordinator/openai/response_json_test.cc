#include "coordinator/openai/response_json.h"

#include "gtest/gtest.h"
#include "tests/coordinator/openai/openai_testing.h"

namespace caravan {
namespace {

using nlohmann::json;

ReplyFrame Frame(GenerationApi api) {
  ReplyFrame frame;
  frame.api = api;
  frame.id = "id-1";
  frame.model = "tiny-r1";
  frame.created = 1'700'000'000;
  frame.tokenizer = &TinyText().tokenizer();
  return frame;
}

ReplyChoice Choice(int index, const std::string& thought, const std::string& answer,
                   const char* finish_reason) {
  ReplyChoice choice;
  choice.index = index;
  choice.thought = thought;
  choice.answer = answer;
  choice.finish_reason = finish_reason;
  return choice;
}

constexpr ReplyUsage kUsage = {10, 4, 6, 3};

TEST(ResponseJsonTest, AWholeChat) {
  EXPECT_EQ(ReplyJson(Frame(GenerationApi::kChat),
                      {Choice(0, "hm", "yes", "stop"), Choice(1, "", "no", "length")}, kUsage),
            json::parse(R"({
    "id": "id-1", "object": "chat.completion", "created": 1700000000, "model": "tiny-r1",
    "choices": [
      {"index": 0, "logprobs": null, "finish_reason": "stop",
       "message": {"role": "assistant", "content": "yes", "reasoning_content": "hm", "refusal": null}},
      {"index": 1, "logprobs": null, "finish_reason": "length",
       "message": {"role": "assistant", "content": "no", "reasoning_content": null, "refusal": null}}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 6, "total_tokens": 16,
              "prompt_tokens_details": {"cached_tokens": 4},
              "completion_tokens_details": {"reasoning_tokens": 3}}})"));
}

TEST(ResponseJsonTest, AWholeCompletion) {
  ReplyFrame frame = Frame(GenerationApi::kCompletion);
  EXPECT_EQ(ReplyJson(frame, {Choice(0, "", "yes", "stop")}, kUsage)["choices"], json::parse(R"(
    [{"index": 0, "text": "yes", "logprobs": null, "finish_reason": "stop"}])"));
  EXPECT_EQ(ReplyJson(frame, {}, kUsage)["object"], "text_completion");
  // Lists are there even for no tokens.
  frame.logprobs = true;
  EXPECT_EQ(ReplyJson(frame, {Choice(0, "", "", "stop")}, kUsage)["choices"][0]["logprobs"],
            json::parse(R"({"tokens": [], "token_logprobs": [], "top_logprobs": [],
                            "text_offset": []})"));
}

TEST(ResponseJsonTest, ChunksOfAChat) {
  const ReplyFrame frame = Frame(GenerationApi::kChat);
  EXPECT_EQ(ChunkJson(frame, Choice(1, "hm", "", nullptr), true), json::parse(R"({
    "id": "id-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "tiny-r1",
    "choices": [{"index": 1, "logprobs": null, "finish_reason": null,
                 "delta": {"role": "assistant", "content": "", "reasoning_content": "hm"}}]})"));
  EXPECT_EQ(ChunkJson(frame, Choice(1, "", "yes", nullptr), false)["choices"], json::parse(R"(
    [{"index": 1, "logprobs": null, "finish_reason": null, "delta": {"content": "yes"}}])"));
  EXPECT_EQ(ChunkJson(frame, Choice(1, "", "", "stop"), false)["choices"], json::parse(R"(
    [{"index": 1, "logprobs": null, "finish_reason": "stop", "delta": {}}])"));
}

TEST(ResponseJsonTest, ChunksOfACompletion) {
  ReplyFrame frame = Frame(GenerationApi::kCompletion);
  EXPECT_EQ(ChunkJson(frame, Choice(0, "", "yes", nullptr), true), json::parse(R"({
    "id": "id-1", "object": "text_completion", "created": 1700000000, "model": "tiny-r1",
    "choices": [{"index": 0, "text": "yes", "logprobs": null, "finish_reason": null}]})"));
  frame.logprobs = true;
  ReplyChoice growth = Choice(0, "", "a", nullptr);
  growth.answer_tokens.push_back({{Ids("a")[0], -1, {}}, true, 5});
  EXPECT_EQ(ChunkJson(frame, growth, false)["choices"][0]["logprobs"],
            json::parse(R"({"tokens": ["a"], "token_logprobs": [-1.0],
                            "top_logprobs": [{"a": -1.0}], "text_offset": [5]})"));
  EXPECT_EQ(ChunkJson(frame, Choice(0, "", "", "stop"), false)["choices"][0]["logprobs"], nullptr);
}

TEST(ResponseJsonTest, UsageComesInAChunkOfItsOwn) {
  ReplyFrame frame = Frame(GenerationApi::kChat);
  EXPECT_FALSE(ChunkJson(frame, Choice(0, "", "a", nullptr), true).contains("usage"));
  frame.usage_at_end = true;
  const json chunk = ChunkJson(frame, Choice(0, "", "a", nullptr), true);
  ASSERT_TRUE(chunk.contains("usage"));
  EXPECT_EQ(chunk["usage"], nullptr);
  const json last = UsageChunkJson(frame, kUsage);
  EXPECT_EQ(last["choices"], json::array());
  EXPECT_EQ(last["usage"], UsageJson(kUsage));
  EXPECT_EQ(last["object"], "chat.completion.chunk");
}

}  // namespace
}  // namespace caravan
