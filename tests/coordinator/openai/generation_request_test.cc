#include "coordinator/openai/generation_request.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/openai/request_fields.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/coordinator/openai/openai_testing.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr GenerationApi kChat = GenerationApi::kChat;
constexpr GenerationApi kCompletion = GenerationApi::kCompletion;

absl::StatusOr<GenerationRequest> Parse(GenerationApi api, const json& more) {
  return ParseGenerationRequest(api, api == kChat ? ChatBody(more) : CompletionBody(more),
                                TinyModel());
}

GenerationRequest MustParse(GenerationApi api, const json& more) {
  absl::StatusOr<GenerationRequest> request = Parse(api, more);
  EXPECT_TRUE(request.ok()) << more << ": " << request.status();
  return request.ok() ? *std::move(request) : GenerationRequest();
}

// ---- What is wrong, and the field that is named.

struct BadCase {
  GenerationApi api;
  json fields;
  std::string param;
};

class BadFieldTest : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadFieldTest, IsRefusedByName) {
  const BadCase& bad = GetParam();
  const absl::Status status = Parse(bad.api, bad.fields).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad.fields << status;
  EXPECT_EQ(ParamOf(status), bad.param) << bad.fields << status;
  // In words, too; of what lies within a field at least the field.
  const std::string field = bad.param.substr(0, bad.param.find_first_of(".["));
  EXPECT_THAT(std::string(status.message()), HasSubstr(field)) << bad.fields;
}

std::vector<BadCase> BadCases(GenerationApi api, const std::string& param,
                              const std::vector<json>& values) {
  std::vector<BadCase> cases;
  for (const json& value : values) cases.push_back({api, {{param, value}}, param});
  return cases;
}

json ManyBiases() {
  json biases = json::object();
  for (int id = 0; id <= 1024; ++id) biases[absl::StrCat(id)] = 1;
  return biases;
}

std::vector<BadCase> BadNumbers() {
  std::vector<BadCase> all;
  const auto add = [&](const std::string& param, const std::vector<json>& values) {
    for (const GenerationApi api : {kChat, kCompletion}) {
      for (BadCase& each : BadCases(api, param, values)) all.push_back(std::move(each));
    }
  };
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  add("temperature", {-0.1, 100.1, 1e300, nan, inf, "1", true, json::array(), json::object()});
  add("top_p", {-0.1, 1.1, "x", nan});
  add("top_k", {-2, 1.5, 3'000'000'000, "5", true});
  add("min_p", {-0.1, 1.1, "x"});
  add("frequency_penalty", {-2.1, 2.1, "x"});
  add("presence_penalty", {-2.1, 2.1, "x"});
  add("repetition_penalty", {0, -1, 101, "x"});
  add("n", {0, -1, 129, 1.5, "1", 1e30});
  add("max_tokens", {-1, 1.5, 10'000'000'000, "16", json::array()});
  add("max_completion_tokens", {-1, "16"});
  add("seed", {1.5, "7", 1e30, json::array()});
  add("stop", {5, json::array({5}), "", json::array({"a", ""}), json::object({{"a", 1}}),
               json(std::vector<std::string>(17, "a")), std::string(1025, 'a')});
  add("logit_bias", {json::array({1}), "x", json::object({{"x", 1}}), json::object({{"2048", 1}}),
                     json::object({{"-1", 1}}), json::object({{"01", 1}}), ManyBiases()});
  add("stream", {"true", 1});
  add("stream_options", {json::array({1}), "x"});
  add("ignore_eos", {"yes"});
  add("model", {5, json::object()});
  add("response_format", {"json", json::array({1})});
  for (const GenerationApi api : {kChat, kCompletion}) {
    all.push_back({api, {{"logit_bias", {{"5", 101}}}}, "logit_bias.5"});
    all.push_back({api, {{"logit_bias", {{"5", "1"}}}}, "logit_bias.5"});
    all.push_back(
        {api, {{"stream_options", {{"include_usage", 1}}}}, "stream_options.include_usage"});
    all.push_back({api, {{"response_format", json({{"x", 1}})}}, "response_format.type"});
    all.push_back({api, {{"response_format", {{"type", "xml"}}}}, "response_format.type"});
  }
  return all;
}
INSTANTIATE_TEST_SUITE_P(OfBoth, BadFieldTest, ::testing::ValuesIn(BadNumbers()));

std::vector<BadCase> BadChats() {
  std::vector<BadCase> all;
  const auto add = [&](const std::string& param, const std::string& fields) {
    all.push_back({kChat, json::parse(fields), param});
  };
  add("messages", R"({"messages": null})");
  add("messages", R"({"messages": "hi"})");
  add("messages", R"({"messages": []})");
  add("messages", R"({"messages": {"role": "user", "content": "hi"}})");
  add("messages[0]", R"({"messages": [5]})");
  add("messages[0].role", R"({"messages": [{"content": "hi"}]})");
  add("messages[0].role", R"({"messages": [{"role": 5, "content": "hi"}]})");
  add("messages[1].role", R"({"messages": [{"role": "user", "content": "hi"},
                                           {"role": "wizard", "content": "hi"}]})");
  add("messages[0].role", R"({"messages": [{"role": "tool", "content": "hi"}]})");
  add("messages[0].content", R"({"messages": [{"role": "user"}]})");
  add("messages[0].content", R"({"messages": [{"role": "user", "content": null}]})");
  add("messages[0].content", R"({"messages": [{"role": "user", "content": 5}]})");
  add("messages[0].content[0]", R"({"messages": [{"role": "user", "content": [5]}]})");
  add("messages[0].content[0].type",
      R"({"messages": [{"role": "user", "content": [{"text": "hi"}]}]})");
  add("messages[0].content[1].type",
      R"({"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"},
                                                    {"type": "image_url", "image_url": "x"}]}]})");
  add("messages[0].content[0].text",
      R"({"messages": [{"role": "user", "content": [{"type": "text"}]}]})");
  add("messages[0].tool_calls",
      R"({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
                       {"role": "user", "content": "hi"}]})");
  add("messages", R"({"messages": [{"role": "user", "content": "hi"},
                                   {"role": "assistant", "content": "hello"}]})");
  add("messages", R"({"messages": [{"role": "user", "content": ""}]})");
  add("logprobs", R"({"logprobs": 1})");
  add("top_logprobs", R"({"top_logprobs": 3})");
  add("top_logprobs", R"({"logprobs": false, "top_logprobs": 3})");
  add("top_logprobs", R"({"logprobs": true, "top_logprobs": 21})");
  add("top_logprobs", R"({"logprobs": true, "top_logprobs": -1})");
  add("max_tokens", R"({"max_tokens": 0})");
  add("max_completion_tokens", R"({"max_completion_tokens": 0})");
  add("tools", R"({"tools": [{"type": "function"}]})");
  add("functions", R"({"functions": [{"name": "f"}]})");
  add("modalities", R"({"modalities": ["text", "audio"]})");
  add("web_search_options", R"({"web_search_options": {"x": 1}})");
  return all;
}
INSTANTIATE_TEST_SUITE_P(OfChats, BadFieldTest, ::testing::ValuesIn(BadChats()));

std::vector<BadCase> BadCompletions() {
  std::vector<BadCase> all;
  const auto add = [&](const std::string& param, const std::string& fields) {
    all.push_back({kCompletion, json::parse(fields), param});
  };
  add("prompt", R"({"prompt": null})");
  add("prompt", R"({"prompt": 5})");
  add("prompt", R"({"prompt": true})");
  add("prompt", R"({"prompt": {"text": "hi"}})");
  add("prompt", R"({"prompt": []})");
  add("prompt[0]", R"({"prompt": [[]]})");
  add("prompt[1]", R"({"prompt": ["a", 5]})");
  add("prompt[1]", R"({"prompt": ["a", null]})");
  add("prompt[1]", R"({"prompt": [1, "a"]})");
  add("prompt[1]", R"({"prompt": [1, -1]})");
  add("prompt[0]", R"({"prompt": [2048]})");
  add("prompt[0]", R"({"prompt": [1.5]})");
  add("prompt[0]", R"({"prompt": [18446744073709551615]})");
  add("prompt[1][0]", R"({"prompt": [[1], [2048]]})");
  add("echo", R"({"echo": "yes"})");
  add("logprobs", R"({"logprobs": true})");
  add("logprobs", R"({"logprobs": 21})");
  add("logprobs", R"({"logprobs": -1})");
  add("logprobs", R"({"logprobs": "1"})");
  add("suffix", R"({"suffix": "end"})");
  add("best_of", R"({"best_of": 2})");
  add("best_of", R"({"n": 2, "best_of": 3})");
  add("min_tokens", R"({"min_tokens": 5})");
  add("stop_token_ids", R"({"stop_token_ids": [5]})");
  const auto add_prompt = [&](const std::string& param, const json& prompt, int n = 1) {
    all.push_back({kCompletion, {{"prompt", prompt}, {"n", n}}, param});
  };
  add_prompt("prompt", json(std::vector<std::string>(1025, "a")));
  add_prompt("prompt", json(std::vector<int>(257, 5)));
  add_prompt("prompt[1]", json(std::vector<std::vector<int>>{{5}, std::vector<int>(257, 5)}));
  add_prompt("n", json(std::vector<std::string>(9, "a")), 128);
  return all;
}
INSTANTIATE_TEST_SUITE_P(OfCompletions, BadFieldTest, ::testing::ValuesIn(BadCompletions()));

TEST(GenerationRequestTest, APromptThatIsTooLongHasACodeOfItsOwn) {
  const absl::Status status =
      Parse(kCompletion, {{"prompt", json(std::vector<int>(257, 5))}}).status();
  EXPECT_EQ(ErrorJson(status)["error"]["code"], "context_length_exceeded");
  EXPECT_EQ(status.message(), "prompt: has 257 tokens; the context holds 256");
  EXPECT_TRUE(Parse(kCompletion, {{"prompt", json(std::vector<int>(256, 5))}}).ok());
}

TEST(GenerationRequestTest, AnotherModelIsNotFound) {
  const absl::Status status = Parse(kChat, {{"model", "gpt-4"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ParamOf(status), "model");
  EXPECT_EQ(ErrorJson(status)["error"]["code"], "model_not_found");
  EXPECT_TRUE(Parse(kChat, {{"model", "tiny-r1"}}).ok());
}

TEST(GenerationRequestTest, GrammarsAreNotThereYetByName) {
  const json grammars =
      json::parse(R"({"grammar": "root ::= [a-z]", "guided_json": {"type": "object"},
      "guided_regex": "a*", "guided_choice": ["a", "b"], "guided_grammar": "x",
      "json_schema": {"type": "object"}, "structured_outputs": {"regex": "a"},
      "response_format": {"type": "json_object"}})");
  for (const GenerationApi api : {kChat, kCompletion}) {
    for (const auto& [param, value] : grammars.items()) {
      const absl::Status status = Parse(api, {{param, value}}).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << param;
      EXPECT_EQ(ParamOf(status), param);
      EXPECT_THAT(std::string(status.message()), HasSubstr(param));
    }
  }
  const json schema = {{"response_format", {{"type", "json_schema"}, {"json_schema", {{"a", 1}}}}}};
  EXPECT_EQ(Parse(kChat, schema).status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_TRUE(Parse(kChat, {{"response_format", {{"type", "text"}}}}).ok());
}

// ---- What is right.

TEST(GenerationRequestTest, AChatsDefaultsAreOpenAIs) {
  const GenerationRequest request = MustParse(kChat, json::object());
  EXPECT_EQ(request.api, kChat);
  EXPECT_EQ(request.num_choices, 1);
  EXPECT_EQ(request.max_tokens, std::nullopt);
  EXPECT_EQ(request.seed, std::nullopt);
  EXPECT_THAT(request.stop, IsEmpty());
  EXPECT_FALSE(request.stream || request.echo || request.logprobs || request.ignore_eos);
  EXPECT_EQ(request.sampling.temperature(), 1);
  EXPECT_EQ(request.sampling.top_p(), 1);
  EXPECT_EQ(request.sampling.top_k(), 0u);
  EXPECT_EQ(request.sampling.min_p(), 0);
  EXPECT_EQ(request.sampling.frequency_penalty(), 0);
  EXPECT_EQ(request.sampling.presence_penalty(), 0);
  EXPECT_EQ(request.sampling.repetition_penalty(), 1);
  EXPECT_EQ(request.sampling.num_alternatives(), 0u);
  ASSERT_EQ(request.prompts.size(), 1u);
  EXPECT_EQ(request.prompts[0].token_ids,
            Ids("<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜>"));
}

TEST(GenerationRequestTest, ACompletionIsOfSixteenTokensUnlessItSaysOtherwise) {
  EXPECT_EQ(MustParse(kCompletion, json::object()).max_tokens, 16);
  EXPECT_EQ(MustParse(kCompletion, {{"max_tokens", 0}}).max_tokens, 0);
  EXPECT_EQ(MustParse(kCompletion, {{"max_tokens", 99}}).max_tokens, 99);
}

TEST(GenerationRequestTest, NullIsAsGoodAsAbsent) {
  for (const GenerationApi api : {kChat, kCompletion}) {
    json nulls = json::object();
    for (const char* name : {"model",
                             "n",
                             "stop",
                             "seed",
                             "max_tokens",
                             "max_completion_tokens",
                             "temperature",
                             "top_p",
                             "top_k",
                             "min_p",
                             "frequency_penalty",
                             "presence_penalty",
                             "repetition_penalty",
                             "logit_bias",
                             "logprobs",
                             "top_logprobs",
                             "echo",
                             "stream",
                             "stream_options",
                             "response_format",
                             "grammar",
                             "tools",
                             "functions",
                             "suffix",
                             "best_of",
                             "modalities",
                             "ignore_eos",
                             "min_tokens",
                             "user"}) {
      nulls[name] = nullptr;
    }
    const GenerationRequest absent = MustParse(api, json::object());
    const GenerationRequest null = MustParse(api, nulls);
    EXPECT_EQ(null.sampling.SerializeAsString(), absent.sampling.SerializeAsString());
    EXPECT_EQ(null.num_choices, absent.num_choices);
    EXPECT_EQ(null.max_tokens, absent.max_tokens);
    EXPECT_EQ(null.seed, absent.seed);
    EXPECT_EQ(null.stop, absent.stop);
    EXPECT_EQ(null.logprobs, absent.logprobs);
    EXPECT_EQ(null.echo, absent.echo);
    EXPECT_EQ(null.stream, absent.stream);
    EXPECT_EQ(null.include_usage, absent.include_usage);
    EXPECT_EQ(null.ignore_eos, absent.ignore_eos);
    EXPECT_EQ(null.prompts[0].token_ids, absent.prompts[0].token_ids);
  }
}

TEST(GenerationRequestTest, TakesEverySamplingField) {
  const GenerationRequest request =
      MustParse(kChat, {{"temperature", 0.5},
                        {"top_p", 0.25},
                        {"top_k", 40},
                        {"min_p", 0.125},
                        {"frequency_penalty", -2},
                        {"presence_penalty", 2},
                        {"repetition_penalty", 1.5},
                        {"logit_bias", {{"0", -100}, {"2047", 100}, {"17", 0.5}}},
                        {"seed", -3}});
  EXPECT_EQ(request.sampling.temperature(), 0.5f);
  EXPECT_EQ(request.sampling.top_p(), 0.25f);
  EXPECT_EQ(request.sampling.top_k(), 40u);
  EXPECT_EQ(request.sampling.min_p(), 0.125f);
  EXPECT_EQ(request.sampling.frequency_penalty(), -2);
  EXPECT_EQ(request.sampling.presence_penalty(), 2);
  EXPECT_EQ(request.sampling.repetition_penalty(), 1.5f);
  ASSERT_EQ(request.sampling.logit_biases_size(), 3);
  EXPECT_EQ(request.seed, static_cast<uint64_t>(-3));
}

TEST(GenerationRequestTest, TakesTheLimitsThemselves) {
  for (const json& fields : std::vector<json>{{{"temperature", 0}},
                                              {{"temperature", 100}},
                                              {{"top_p", 0}},
                                              {{"top_k", -1}},
                                              {{"top_k", 2'147'483'647}},
                                              {{"n", 128}},
                                              {{"max_tokens", 1}},
                                              {{"max_tokens", 2'147'483'647}},
                                              {{"seed", 18'446'744'073'709'551'615u}},
                                              {{"stop", std::string(1024, 'a')}},
                                              {{"stop", std::vector<std::string>(16, "a")}}}) {
    MustParse(kChat, fields);
    MustParse(kCompletion, fields);
  }
  EXPECT_EQ(MustParse(kChat, {{"top_k", -1}}).sampling.top_k(), 0u);
  // To the sampler 0 is no limit, to a client the narrowest there is.
  EXPECT_GT(MustParse(kChat, {{"top_p", 0}}).sampling.top_p(), 0);
  MustParse(kCompletion, {{"prompt", json(std::vector<std::string>(1024, "a"))}});
  MustParse(kCompletion, {{"prompt", json(std::vector<std::string>(8, "a"))}, {"n", 128}});
}

TEST(GenerationRequestTest, OfTheTwoLengthsTheNewerNameCounts) {
  EXPECT_EQ(MustParse(kChat, {{"max_tokens", 5}}).max_tokens, 5);
  EXPECT_EQ(MustParse(kChat, {{"max_completion_tokens", 7}}).max_tokens, 7);
  EXPECT_EQ(MustParse(kChat, {{"max_completion_tokens", 7}, {"max_tokens", 5}}).max_tokens, 7);
}

TEST(GenerationRequestTest, StopIsOneStringOrSeveral) {
  EXPECT_THAT(MustParse(kChat, {{"stop", "a"}}).stop, ElementsAre("a"));
  EXPECT_THAT(MustParse(kChat, {{"stop", {"a", "\n\n"}}}).stop, ElementsAre("a", "\n\n"));
  EXPECT_THAT(MustParse(kChat, {{"stop", json::array()}}).stop, IsEmpty());
}

TEST(GenerationRequestTest, LogprobsAreAFlagInChatsAndACountInCompletions) {
  const GenerationRequest chat = MustParse(kChat, {{"logprobs", true}, {"top_logprobs", 20}});
  EXPECT_TRUE(chat.logprobs);
  EXPECT_EQ(chat.sampling.num_alternatives(), 20u);
  EXPECT_EQ(MustParse(kChat, {{"logprobs", true}}).sampling.num_alternatives(), 0u);
  const GenerationRequest completion = MustParse(kCompletion, {{"logprobs", 5}});
  EXPECT_TRUE(completion.logprobs);
  EXPECT_EQ(completion.sampling.num_alternatives(), 5u);
  EXPECT_TRUE(MustParse(kCompletion, {{"logprobs", 0}}).logprobs);
  EXPECT_FALSE(MustParse(kCompletion, {{"logprobs", false}}).logprobs);
}

TEST(GenerationRequestTest, AStreamMayTellItsUsage) {
  EXPECT_FALSE(MustParse(kChat, {{"stream", true}}).include_usage);
  const json options = {{"stream", true}, {"stream_options", {{"include_usage", true}}}};
  EXPECT_TRUE(MustParse(kChat, options).stream);
  EXPECT_TRUE(MustParse(kChat, options).include_usage);
}

TEST(GenerationRequestTest, APromptIsTextOrTokensOneOrSeveral) {
  const GenerationRequest text = MustParse(kCompletion, {{"prompt", "What"}});
  ASSERT_EQ(text.prompts.size(), 1u);
  EXPECT_EQ(text.prompts[0].token_ids, Ids("<｜begin▁of▁sentence｜>What"));
  EXPECT_EQ(text.prompts[0].added_tokens, 1);
  // A text that spells the token out has it once.
  const GenerationRequest spelt =
      MustParse(kCompletion, {{"prompt", "<｜begin▁of▁sentence｜>What"}});
  EXPECT_EQ(spelt.prompts[0].token_ids, text.prompts[0].token_ids);
  EXPECT_EQ(spelt.prompts[0].added_tokens, 0);

  const GenerationRequest tokens = MustParse(kCompletion, {{"prompt", {5, 0, 2047}}});
  ASSERT_EQ(tokens.prompts.size(), 1u);
  EXPECT_THAT(tokens.prompts[0].token_ids, ElementsAre(5, 0, 2047));
  EXPECT_EQ(tokens.prompts[0].added_tokens, 0);

  const GenerationRequest several =
      MustParse(kCompletion, {{"prompt", json::array({"What", json::array({5, 6})})}});
  ASSERT_EQ(several.prompts.size(), 2u);
  EXPECT_EQ(several.prompts[0].token_ids, text.prompts[0].token_ids);
  EXPECT_THAT(several.prompts[1].token_ids, ElementsAre(5, 6));
  // No text is a text: what the model makes of its beginning.
  EXPECT_THAT(MustParse(kCompletion, {{"prompt", ""}}).prompts[0].token_ids, ElementsAre(kBos));
}

TEST(GenerationRequestTest, MessagesBecomeAPromptOfTheModelsForm) {
  const GenerationRequest request = MustParse(kChat, json::parse(R"({"messages": [
      {"role": "developer", "content": "Be brief."},
      {"role": "user", "content": [{"type": "text", "text": "1 "}, {"type": "text", "text": "+ 1?"}]},
      {"role": "assistant", "content": "2", "reasoning_content": "easy", "tool_calls": []},
      {"role": "user", "content": "and 2 + 2?", "name": "Ann"}]})"));
  EXPECT_EQ(request.prompts[0].token_ids,
            Ids("<｜begin▁of▁sentence｜>Be brief.<｜User｜>1 + 1?<｜Assistant｜>2"
                "<｜end▁of▁sentence｜><｜User｜>and 2 + 2?<｜Assistant｜>"));
}

TEST(GenerationRequestTest, AConversationThatIsTooLongIsRefused) {
  std::string longer;
  for (int i = 0; i < 300; ++i) absl::StrAppend(&longer, i, " ");
  json message = {{"role", "user"}, {"content", longer}};
  const absl::Status status =
      Parse(kChat, {{"messages", json::array({std::move(message)})}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ParamOf(status), "messages");
  EXPECT_EQ(ErrorJson(status)["error"]["code"], "context_length_exceeded");
}

TEST(GenerationRequestTest, WhatChangesNothingIsIgnored) {
  MustParse(kChat, {{"user", "Ann"},
                    {"store", false},
                    {"metadata", {{"a", "b"}}},
                    {"service_tier", "auto"},
                    {"tools", json::array()},
                    {"tool_choice", "none"},
                    {"parallel_tool_calls", true},
                    {"modalities", json::array({"text"})},
                    {"min_tokens", 0},
                    {"use_beam_search", false},
                    {"grammar", ""}});
  MustParse(kCompletion, {{"suffix", ""}, {"best_of", 1}, {"user", "Ann"}});
  MustParse(kCompletion, {{"n", 3}, {"best_of", 3}});
}

// ---- Bodies that are no JSON.

TEST(RequestBodyTest, NamesTheFieldWhoseValueCannotBeRead) {
  const std::string nested = std::string(100, '[') + std::string(100, ']');
  const std::pair<std::string, std::string> cases[] = {
      {R"({"temperature": NaN})", "temperature"},
      {R"({"a": 1, "top_p": Infinity, "b": 2})", "top_p"},
      {R"({"top_p": -Infinity})", "top_p"},
      {R"({"temperature": 1e999})", "temperature"},
      {R"({"temperature": 01})", ""},  // 0 is a value; what comes behind it belongs to none
      {R"({"messages": [{"role": "user", "content": nan}]})", "messages"},
      {absl::StrCat(R"({"messages": )", nested, "}"), "messages"},
      {absl::StrCat(R"({"prompt": ")", "\xff", R"("})"), "prompt"},
      {R"({"prompt": "\ud800"})", "prompt"},
      {R"({"prompt": "a)", "prompt"},
      {R"({"n": 1, "n": 2})", "n"},
      {R"({"stop": {"k": 1, "k": 2}})", "stop"},
      {R"({"a": 1, b: 2})", ""},
      {R"({"a": 1} x)", ""},
      {"", ""},
      {"[1]", ""},
      {"\"x\"", ""},
      {"null", ""},
      {R"({"a": 1)", ""},
  };
  for (const auto& [body, param] : cases) {
    const absl::Status status = ParseRequestBody(body).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << body;
    EXPECT_EQ(ParamOf(status), param) << body << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("the request's body")) << body;
    EXPECT_LT(status.message().size(), 500u);
  }
  EXPECT_TRUE(ParseRequestBody(R"({"a": [1, {"b": {}}], "c": 1e308})").ok());
}

TEST(RequestBodyTest, QuotesLittleOfWhatItRefuses) {
  const std::string key(1'000'000, 'k');
  const absl::Status status =
      ParseRequestBody(absl::StrCat("{\"", key, "\": 1, \"", key, "\": 2}")).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_LT(status.message().size(), 500u);
  EXPECT_LT(ParamOf(status).size(), 500u);
}

}  // namespace
}  // namespace caravan
