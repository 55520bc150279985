#include "model/pre_tokenizer.h"

#include "absl/strings/str_cat.h"
#include "base/json.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kByteLevel[] =
    R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})";

absl::StatusOr<PreTokenizer> Parse(const std::string& text) {
  return PreTokenizer::Parse(*ParseJson(text, "test"), "t.json: pre_tokenizer");
}

/// The pieces that one Split gives.
std::vector<absl::string_view> Split(const std::string& pattern, const std::string& behavior,
                                     bool invert, absl::string_view text) {
  const absl::StatusOr<PreTokenizer> pre_tokenizer =
      Parse(absl::StrCat(R"({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": )",
                         pattern, R"(, "behavior": ")", behavior, R"(", "invert": )",
                         invert ? "true" : "false", "}, ", kByteLevel, "]}"));
  if (!pre_tokenizer.ok()) {
    ADD_FAILURE() << pre_tokenizer.status();
    return {};
  }
  return *pre_tokenizer->Split(text);
}

// The example that Hugging Face's documentation gives for the behaviours.
TEST(PreTokenizerTest, BehavioursAreHuggingFaces) {
  const std::string dash = R"({"String": "-"})";
  const char text[] = "the-final--countdown";
  EXPECT_THAT(Split(dash, "Removed", false, text), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(Split(dash, "Isolated", false, text),
              ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(Split(dash, "MergedWithPrevious", false, text),
              ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(Split(dash, "MergedWithNext", false, text),
              ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(Split(dash, "Contiguous", false, text),
              ElementsAre("the", "-", "final", "--", "countdown"));
}

TEST(PreTokenizerTest, InvertTakesWhatLiesBetweenForTheMatch) {
  const std::string letters = R"({"Regex": "\\p{L}+"})";
  EXPECT_THAT(Split(letters, "Removed", true, "ab, cd."), ElementsAre("ab", "cd"));
  EXPECT_THAT(Split(letters, "MergedWithPrevious", true, "ab, cd."), ElementsAre("ab, ", "cd."));
}

TEST(PreTokenizerTest, AnEmptyTextHasNoPieces) {
  EXPECT_THAT(Split(R"({"String": "-"})", "Isolated", false, ""), ElementsAre());
}

TEST(PreTokenizerTest, ByteLevelAloneSplitsAsGpt2) {
  const absl::StatusOr<PreTokenizer> pre_tokenizer =
      Parse(R"({"type": "ByteLevel", "add_prefix_space": false})");
  ASSERT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  EXPECT_THAT(*pre_tokenizer->Split("I'm  here, 42 x!"),
              ElementsAre("I", "'m", " ", " here", ",", " 42", " x", "!"));
}

TEST(PreTokenizerTest, RefusesByNameWhatItDoesNotRun) {
  for (const auto& [text, named] : std::vector<std::pair<std::string, std::string>>{
           {R"({"type": "Whitespace"})", "Whitespace"},
           {R"({"type": "ByteLevel"})", "add_prefix_space"},
           {R"({"type": "Sequence", "pretokenizers": []})", "no ByteLevel"},
           {R"({"type": "Sequence"})", "\"pretokenizers\" is missing"},
           {R"({"type": "Sequence", "pretokenizers": [3]})", "pretokenizers[0]"},
           {absl::StrCat(R"({"type": "Sequence", "pretokenizers": [)", kByteLevel, ",", kByteLevel,
                         "]}"),
            "must be last"},
           {R"({"type": "Split", "pattern": {"Regex": "\\w"}, "behavior": "Isolated"})", "\\w"},
           {R"({"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated"})", "String"},
           {R"({"type": "Split", "pattern": {}, "behavior": "Isolated"})", "Regex"},
           {R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Doubled"})", "Doubled"},
           {R"([])", "object"},
       }) {
    const absl::Status status = Parse(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("t.json: pre_tokenizer")) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(named)) << text;
  }
}

}  // namespace
}  // namespace caravan
