#include "coordinator/openai/generation.h"

#include <map>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/openai/openai_testing.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr GenerationApi kChat = GenerationApi::kChat;
constexpr GenerationApi kCompletion = GenerationApi::kCompletion;

std::unique_ptr<Generation> MustCreate(GenerationApi api, const json& more) {
  absl::StatusOr<std::unique_ptr<Generation>> generation =
      Generation::Create(api, api == kChat ? ChatBody(more) : CompletionBody(more), TinyModel());
  CARAVAN_CHECK(generation.ok());
  return *std::move(generation);
}

ScoredToken Score(int32_t id, float log_probability = -1) { return {id, log_probability, {}}; }

/// Pushes one token an update, then the end; stops early where the generation has enough.
void PushAll(Generation& generation, size_t choice, const std::vector<int32_t>& ids,
             v1::FinishReason reason = v1::FINISH_REASON_LENGTH) {
  for (const int32_t id : ids) {
    JobUpdate update;
    update.tokens.push_back(Score(id));
    if (generation.Push(choice, update)) return;
  }
  JobUpdate end;
  end.finished = true;
  end.reason = reason;
  EXPECT_TRUE(generation.Push(choice, end));
}

std::vector<int32_t> WithEos(std::vector<int32_t> ids) {
  ids.push_back(kEos);
  return ids;
}

/// Puts a stream's chunks together, as clients do, to choices as the whole reply has them.
class StreamReader {
 public:
  explicit StreamReader(GenerationApi api) : api_(api) {}

  void Take(Generation& generation) {
    for (const json& chunk : generation.TakeChunks()) Read(chunk);
  }

  json Choices() const {
    json list = json::array();
    for (const auto& [index, choice] : choices_) list.push_back(choice);
    return list;
  }
  const json& usage() const { return usage_; }
  const std::string& id() const { return id_; }

 private:
  void Read(const json& chunk) {
    EXPECT_TRUE(id_.empty() || id_ == chunk["id"]) << "chunks of one reply have one id";
    id_ = chunk["id"];
    EXPECT_EQ(usage_, nullptr) << "nothing comes behind the usage";
    if (chunk["choices"].empty()) {
      usage_ = chunk["usage"];
      return;
    }
    for (const json& choice : chunk["choices"]) Read(choice["index"], choice);
  }

  void Read(int index, const json& growth) {
    const bool is_new = choices_.count(index) == 0;
    json& choice = choices_[index];
    if (is_new) choice = {{"index", index}, {"logprobs", nullptr}, {"finish_reason", nullptr}};
    EXPECT_EQ(choice["finish_reason"], nullptr) << "nothing comes behind the end";
    choice["finish_reason"] = growth["finish_reason"];
    if (growth["logprobs"].is_object()) {
      for (const auto& [name, list] : growth["logprobs"].items()) {
        json& all = choice["logprobs"][name];
        if (all.is_null())
          all = list;
        else if (list.is_array())
          all.insert(all.end(), list.begin(), list.end());
      }
    }
    if (api_ == kCompletion) {
      choice["text"] = choice.value("text", "") + growth["text"].get<std::string>();
      return;
    }
    const json& delta = growth["delta"];
    EXPECT_EQ(delta.contains("role"), is_new) << "the first tells the role";
    json& message = choice["message"];
    if (is_new) {
      message = {{"role", delta["role"]},
                 {"refusal", nullptr},
                 {"reasoning_content", nullptr},
                 {"content", ""}};
    }
    message["content"] = message.value("content", "") + delta.value("content", "");
    if (delta.contains("reasoning_content")) {
      json& thought = message["reasoning_content"];
      thought = (thought.is_null() ? "" : thought.get<std::string>()) +
                delta["reasoning_content"].get<std::string>();
    }
  }

  const GenerationApi api_;
  std::string id_;
  std::map<int, json> choices_;
  json usage_;
};

TEST(GenerationTest, AJobForEachChoice) {
  const auto generation = MustCreate(
      kCompletion,
      {{"prompt", {"a", "b"}}, {"n", 2}, {"seed", 7}, {"max_tokens", 5}, {"temperature", 0.5}});
  const std::vector<JobSpec> specs = generation->TakeSpecs();
  ASSERT_EQ(specs.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(specs[i].prompt, (std::vector<int32_t>{kBos, Ids(i < 2 ? "a" : "b")[0]}));
    EXPECT_EQ(specs[i].max_new_tokens, 5);
    EXPECT_EQ(specs[i].sampling.temperature(), 0.5f);
    // Choices differ, and the first is as if it were the only one.
    EXPECT_EQ(specs[i].sampling.seed(), 7 + i % 2);
    EXPECT_EQ(specs[i].stop_token_ids, TinyText().stop_token_ids());
    EXPECT_EQ(specs[i].priority, JobPriority::kInteractive);
    EXPECT_FALSE(specs[i].score_prompt);
    EXPECT_TRUE(CheckJobSpec(specs[i], 2048, 256).ok());
  }
}

TEST(GenerationTest, WithoutASeedEachChoiceDrawsItsOwn) {
  const auto one = MustCreate(kChat, {{"n", 2}})->TakeSpecs();
  const auto two = MustCreate(kChat, {{"n", 2}})->TakeSpecs();
  EXPECT_NE(one[0].sampling.seed(), one[1].sampling.seed());
  EXPECT_NE(one[0].sampling.seed(), two[0].sampling.seed());
  // As long as the context allows.
  EXPECT_TRUE(CheckJobSpec(one[0], 2048, 256).ok());
  EXPECT_GT(one[0].max_new_tokens, int64_t{1} << 40);
}

TEST(GenerationTest, IgnoringTheEndOfSentenceLeavesNoStopToken) {
  EXPECT_THAT(MustCreate(kChat, {{"ignore_eos", true}})->TakeSpecs()[0].stop_token_ids, IsEmpty());
}

TEST(GenerationTest, AWholeChat) {
  const auto generation = MustCreate(kChat, json::object());
  generation->TakeSpecs();
  EXPECT_FALSE(generation->streams());
  const std::vector<int32_t> ids = WithEos(Ids("<think>1 + 1</think>It is 2"));
  PushAll(*generation, 0, ids, v1::FINISH_REASON_STOP);
  ASSERT_TRUE(generation->done());
  const json reply = generation->Response();
  EXPECT_THAT(reply["id"].get<std::string>(), StartsWith("chatcmpl-"));
  EXPECT_EQ(reply["model"], "tiny-r1");
  EXPECT_EQ(reply["choices"], json::parse(R"([{"index": 0, "finish_reason": "stop",
      "logprobs": null, "message": {"role": "assistant", "content": "It is 2",
                                    "reasoning_content": "1 + 1", "refusal": null}}])"));
  const auto prompt_tokens =
      static_cast<int64_t>(MustCreate(kChat, json::object())->TakeSpecs()[0].prompt.size());
  const auto reply_tokens = static_cast<int64_t>(ids.size());
  EXPECT_EQ(reply["usage"]["prompt_tokens"], prompt_tokens);
  EXPECT_EQ(reply["usage"]["completion_tokens"], reply_tokens);
  EXPECT_EQ(reply["usage"]["total_tokens"], prompt_tokens + reply_tokens);
  EXPECT_EQ(reply["usage"]["completion_tokens_details"]["reasoning_tokens"],
            static_cast<int64_t>(Ids("1 + 1").size()) + 2);
}

TEST(GenerationTest, ChunksPutTogetherAreTheWholeReply) {
  const std::vector<std::string> texts = {"<think>1 + 1</think>It is 2", "No thought",
                                          "<think>only a thought"};
  for (const GenerationApi api : {kChat, kCompletion}) {
    for (const bool logprobs : {false, true}) {
      json fields = {{"n", 3}, {"stop", {"It is 3", "zzz"}}};
      if (logprobs) fields["logprobs"] = api == kChat ? json(true) : json(2);
      if (api == kCompletion) fields["echo"] = true;
      const auto whole = MustCreate(api, fields);
      fields["stream"] = true;
      fields["stream_options"] = {{"include_usage", true}};
      const auto stream = MustCreate(api, fields);
      StreamReader reader(api);
      for (size_t i = 0; i < 3; ++i) {
        const std::vector<int32_t> ids = WithEos(Ids(texts[i] + kSmile));
        for (const int32_t id : ids) {
          JobUpdate update;
          update.tokens.push_back(Score(id));
          if (logprobs && api == kCompletion && id == ids[0]) {
            update.prompt_scores.push_back(Score(Ids("hi")[0], -2));
            for (size_t rest = 1; rest < Ids("hi").size(); ++rest) {
              update.prompt_scores.push_back(Score(Ids("hi")[rest], -3));
            }
          }
          update.finished = id == kEos;
          update.reason = v1::FINISH_REASON_STOP;
          EXPECT_EQ(whole->Push(i, update), update.finished);
          EXPECT_EQ(stream->Push(i, update), update.finished);
          reader.Take(*stream);
        }
      }
      ASSERT_TRUE(whole->done() && stream->done());
      reader.Take(*stream);
      EXPECT_EQ(reader.Choices(), whole->Response()["choices"]);
      EXPECT_EQ(reader.usage(), whole->Response()["usage"]);
      EXPECT_THAT(stream->TakeChunks(), IsEmpty());
    }
  }
}

TEST(GenerationTest, UsageIsToldToThoseWhoAsk) {
  const auto generation = MustCreate(kChat, {{"stream", true}});
  PushAll(*generation, 0, Ids("a"));
  StreamReader reader(kChat);
  reader.Take(*generation);
  EXPECT_EQ(reader.usage(), nullptr);
  EXPECT_EQ(reader.Choices()[0]["message"]["content"], "a");
}

TEST(GenerationTest, AReplyOfNothingStillHasARoleAndAnEnd) {
  const auto generation = MustCreate(kChat, {{"stream", true}});
  PushAll(*generation, 0, {kEos}, v1::FINISH_REASON_STOP);
  const std::vector<json> chunks = generation->TakeChunks();
  ASSERT_EQ(chunks.size(), 1u);
  EXPECT_EQ(chunks[0]["choices"], json::parse(R"([{"index": 0, "logprobs": null,
      "finish_reason": "stop", "delta": {"role": "assistant", "content": ""}}])"));
}

TEST(GenerationTest, AStopStringEndsTheJob) {
  const auto generation = MustCreate(kCompletion, {{"stop", "b"}, {"n", 2}});
  JobUpdate update;
  update.tokens = {Score(Ids("a")[0]), Score(Ids("b")[0]), Score(Ids("c")[0])};
  EXPECT_TRUE(generation->Push(0, update));
  EXPECT_TRUE(generation->Push(0, update)) << "what comes later changes nothing";
  EXPECT_FALSE(generation->done());
  EXPECT_TRUE(generation->Push(1, update));
  ASSERT_TRUE(generation->done());
  const json reply = generation->Response();
  EXPECT_EQ(reply["choices"][0]["text"], "a");
  EXPECT_EQ(reply["choices"][0]["finish_reason"], "stop");
  EXPECT_EQ(reply["usage"]["completion_tokens"], 4);
}

TEST(GenerationTest, UsageCountsAPromptOnce) {
  const auto generation = MustCreate(kCompletion, {{"prompt", {{5, 6, 7}, {8, 9}}}, {"n", 2}});
  for (size_t i = 0; i < 4; ++i) {
    JobUpdate update;
    update.tokens.push_back(Score(5));
    update.cached_prompt_tokens = 2;
    update.finished = true;
    update.reason = v1::FINISH_REASON_LENGTH;
    EXPECT_TRUE(generation->Push(i, update));
  }
  const json usage = generation->Response()["usage"];
  EXPECT_EQ(usage["prompt_tokens"], 5);
  EXPECT_EQ(usage["completion_tokens"], 4);
  EXPECT_EQ(usage["prompt_tokens_details"]["cached_tokens"], 4);
}

/// What evaluation harnesses ask: prompts as tokens, echo, logprobs, and one token or none.
TEST(GenerationTest, EchoScoresAPrompt) {
  const std::vector<int32_t> prompt = Ids("a b c");
  for (const int max_tokens : {0, 1}) {
    const auto generation = MustCreate(kCompletion, {{"prompt", json::array({json(prompt)})},
                                                     {"max_tokens", max_tokens},
                                                     {"temperature", 0},
                                                     {"logprobs", 1},
                                                     {"echo", true}});
    const std::vector<JobSpec> specs = generation->TakeSpecs();
    ASSERT_EQ(specs.size(), 1u);
    EXPECT_EQ(specs[0].prompt, prompt);
    EXPECT_TRUE(specs[0].score_prompt);
    EXPECT_EQ(specs[0].max_new_tokens, max_tokens);
    EXPECT_EQ(specs[0].sampling.num_alternatives(), 1u);
    for (size_t i = 1; i < prompt.size(); ++i) {
      JobUpdate update;
      update.prompt_scores = {{prompt[i], -0.5, {{prompt[0], -0.25}}}};
      const bool last = i + 1 == prompt.size();
      // The model may want to end at once: that token, too, is listed.
      if (last && max_tokens == 1) update.tokens = {Score(kEos, -0.125)};
      update.finished = last;
      update.reason = max_tokens == 1 ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH;
      EXPECT_EQ(generation->Push(0, update), last);
    }
    const json choice = generation->Response()["choices"][0];
    EXPECT_EQ(choice["text"], "a b c");
    const json& logprobs = choice["logprobs"];
    const size_t size = prompt.size() + static_cast<size_t>(max_tokens);
    for (const auto& [name, list] : logprobs.items()) EXPECT_EQ(list.size(), size) << name;
    EXPECT_EQ(logprobs["token_logprobs"][0], nullptr);
    EXPECT_EQ(logprobs["top_logprobs"][0], nullptr);
    for (size_t i = 1; i < prompt.size(); ++i) {
      EXPECT_EQ(logprobs["token_logprobs"][i], -0.5);
      EXPECT_EQ(logprobs["top_logprobs"][i].size(), prompt[i] == prompt[0] ? 1u : 2u);
    }
    EXPECT_EQ(generation->Response()["usage"]["completion_tokens"], max_tokens);
  }
}

TEST(GenerationTest, EchoWithoutScoresIsThePromptAsText) {
  const auto generation = MustCreate(kCompletion, {{"echo", true}, {"max_tokens", 0}});
  EXPECT_FALSE(generation->TakeSpecs()[0].score_prompt);
  PushAll(*generation, 0, {});
  const json choice = generation->Response()["choices"][0];
  EXPECT_EQ(choice["text"], "hi");
  EXPECT_EQ(choice["logprobs"], nullptr);
  EXPECT_EQ(choice["finish_reason"], "length");
}

TEST(GenerationTest, WhatCannotBeParsedIsNoGeneration) {
  const absl::Status status = Generation::Create(kChat, ChatBody({{"n", 0}}), TinyModel()).status();
  EXPECT_EQ(ParamOf(status), "n");
}

}  // namespace
}  // namespace caravan
