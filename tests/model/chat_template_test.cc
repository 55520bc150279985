#include "model/chat_template.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/tokenizer_files.h"

namespace caravan {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr char kBos[] = "<｜begin▁of▁sentence｜>";

/// A tokenizer_config.json; with the flag its template is of the kind that sets system texts apart.
json Config(const std::string& generation_prompt, bool first_system_flag = false) {
  return {{"bos_token", {{"__type", "AddedToken"}, {"content", kBos}}},
          {"eos_token", "<｜end▁of▁sentence｜>"},
          {"chat_template", std::string(first_system_flag ? "{% set is_first_sp = true %}" : "") +
                                "{{'<｜User｜>' + content}}{{'<｜Assistant｜>' + content}}" +
                                "{% if add_generation_prompt %}{{'" + generation_prompt +
                                "'}}{% endif %}"}};
}

class ChatTemplateTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const json& config) {
    return ChatTemplate::Parse(config.dump(), "x/tokenizer_config.json", *tokenizer_);
  }
  std::string Render(const json& config, const std::vector<ChatTurn>& turns) {
    const auto chat = Load(config);
    if (!chat.ok()) return chat.status().ToString();
    const absl::StatusOr<std::string> prompt = (*chat)->Render(turns);
    return prompt.ok() ? *prompt : prompt.status().ToString();
  }

  const std::unique_ptr<Tokenizer> tokenizer_ = LoadTinyTokenizer();
};

TEST_F(ChatTemplateTest, TinyPromptsAreTransformers) {
  const std::string path = JoinPath(kTinyDirectory, "tokenizer_config.json");
  const auto chat = ChatTemplate::Parse(*ReadFile(path, 1 << 20), path, *tokenizer_);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_FALSE((*chat)->reply_starts_in_thought());
  EXPECT_EQ((*chat)->eos_token_id(), 1);
  for (const json& line : ReadGoldenLines("tiny-r1-replies.jsonl")) {
    const auto ids = (*chat)->Encode({{"user", line["question"].get<std::string>()}});
    ASSERT_TRUE(ids.ok()) << ids.status();
    EXPECT_EQ(*ids, line["prompt_ids"].get<std::vector<int32_t>>()) << line;
  }
}

TEST_F(ChatTemplateTest, EarlierThoughtsAreDropped) {
  EXPECT_EQ(Render(Config("<｜Assistant｜>"), {{"user", "1+1?"},
                                               {"assistant", "<think>\na</think>b\n</think>\n\n2"},
                                               {"user", "sure?"},
                                               {"assistant", "yes"},
                                               {"user", "ok"}}),
            std::string(kBos) +
                "<｜User｜>1+1?<｜Assistant｜>\n\n2<｜end▁of▁sentence｜><｜User｜>sure?"
                "<｜Assistant｜>yes<｜end▁of▁sentence｜><｜User｜>ok<｜Assistant｜>");
}

TEST_F(ChatTemplateTest, SystemTextsComeFirstAndAreJoinedAsTheTemplateDoes) {
  const std::vector<ChatTurn> turns = {
      {"system", "A"}, {"user", "x"}, {"system", "B"}, {"user", "y"}};
  const std::string rest = "<｜User｜>x<｜User｜>y<｜Assistant｜>";
  EXPECT_EQ(Render(Config("<｜Assistant｜>"), turns), std::string(kBos) + "AB" + rest);
  EXPECT_EQ(Render(Config("<｜Assistant｜>", true), turns), std::string(kBos) + "A\n\nB" + rest);
}

TEST_F(ChatTemplateTest, OpensTheThoughtWhereTheTemplateDoes) {
  for (const char* prompt : {"<｜Assistant｜><think>\n", "<｜Assistant｜><think>\\n"}) {
    const json config = Config(prompt);
    const auto chat = Load(config);
    ASSERT_TRUE(chat.ok()) << chat.status();
    EXPECT_TRUE((*chat)->reply_starts_in_thought());
    EXPECT_EQ(
        Render(config, {{"user", "x"}, {"assistant", "y"}, {"user", "z"}}),
        std::string(kBos) +
            "<｜User｜>x<｜Assistant｜>y<｜end▁of▁sentence｜><｜User｜>z<｜Assistant｜><think>\n");
  }
}

TEST_F(ChatTemplateTest, RefusesMessagesByName) {
  const json config = Config("<｜Assistant｜>");
  for (const auto& [named, turns] : std::vector<std::pair<std::string, std::vector<ChatTurn>>>{
           {"messages: must not be empty", {}},
           {"messages[0]: role must be", {{"tool", "x"}, {"user", "y"}}},
           {"messages[1]: the prompt is empty", {{"user", "x"}, {"user", ""}}},
           {"messages[1]: the last message must be the user's", {{"user", "x"}, {"system", "y"}}},
           {"messages[0]: content is not valid UTF-8 at byte 1", {{"user", "x\xC3"}}},
       }) {
    EXPECT_THAT(Render(config, turns), HasSubstr("INVALID_ARGUMENT: " + named));
  }
}

TEST_F(ChatTemplateTest, RefusesConfigsByFileAndField) {
  const json good = Config("<｜Assistant｜>");
  for (const auto& [field, value] : std::vector<std::pair<std::string, json>>{
           {"chat_template", nullptr},
           {"chat_template", {{{"name", "default"}, {"template", "x"}}}},
           {"chat_template", "<|im_start|>user"},
           {"chat_template", "<｜User｜> alone"},
           {"chat_template", Config("<｜Assistant｜></think>")["chat_template"]},  // V3.1's
           {"chat_template", Config("<｜Assistant｜><think>")["chat_template"]},
           {"chat_template", Config("<｜Assistant｜>Sure")["chat_template"]},
           {"bos_token", nullptr},
           {"bos_token", 3},
           {"bos_token", {{"text", "x"}}},
           {"eos_token", "<eos>"},
       }) {
    json config = good;
    config[field] = value;
    const absl::Status status = Load(config).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field << value;
    EXPECT_THAT(std::string(status.message()), HasSubstr("x/tokenizer_config.json"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  }
}

}  // namespace
}  // namespace caravan
