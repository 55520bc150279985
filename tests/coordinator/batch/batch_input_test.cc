#include "coordinator/batch/batch_input.h"

#include <memory>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Gt;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Le;
using ::testing::SizeIs;

constexpr char kEndpoint[] = "/v1/chat/completions";

TEST(BatchInputTest, TakesALineApart) {
  const auto parsed = ParseBatchLine(
      R"({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"n": 2}})",
      kEndpoint);
  const auto* const line = std::get_if<BatchLine>(&parsed);
  ASSERT_NE(line, nullptr);
  EXPECT_EQ(line->custom_id, "a");
  EXPECT_EQ(line->body, R"({"n":2})");
}

TEST(BatchInputTest, SaysWhatIsWrongWithALine) {
  struct Case {
    std::string line;
    std::string code;
    std::optional<std::string> param;
    std::string says;
  };
  const std::string long_id(513, 'x');
  for (const Case& each : std::vector<Case>{
           {"{", "invalid_json_line", std::nullopt, "not valid JSON at column 2"},
           {"[1]", "invalid_json_line", std::nullopt, "must be a JSON object"},
           {R"({"a": 1, "a": 2})", "invalid_json_line", std::nullopt, "\"a\" is repeated"},
           {R"({"method": "POST"})", "missing_required_parameter", "custom_id", "is missing"},
           {R"({"custom_id": "a", "method": "POST", "url": null})", "missing_required_parameter",
            "url", "is missing"},
           {R"({"custom_id": 3})", "invalid_type", "custom_id", "wrong type"},
           {R"({"custom_id": "a", "method": "POST", "url": "x", "body": "hi"})", "invalid_type",
            "body", "must be an object"},
           {R"({"custom_id": "", "method": "POST", "url": "x", "body": {}})", "invalid_custom_id",
            "custom_id", "1 to 512 bytes"},
           {absl::StrCat(R"({"custom_id": ")", long_id,
                         R"(", "method": "POST", "url": "x", "body": {}})"),
            "invalid_custom_id", "custom_id", "1 to 512 bytes"},
           {R"({"custom_id": "a", "method": "GET", "url": "x", "body": {}})", "invalid_method",
            "method", "\"POST\""},
           {R"({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {}})",
            "invalid_url", "url", kEndpoint},
       }) {
    const auto parsed = ParseBatchLine(each.line, kEndpoint);
    const auto* const error = std::get_if<BatchError>(&parsed);
    ASSERT_NE(error, nullptr) << each.line;
    EXPECT_EQ(error->code, each.code) << each.line;
    EXPECT_EQ(error->param, each.param) << each.line;
    EXPECT_THAT(error->message, HasSubstr(each.says)) << each.line;
  }
}

TEST(BatchInputTest, KnowsItsEndpoints) {
  EXPECT_EQ(BatchApi("/v1/chat/completions"), GenerationApi::kChat);
  EXPECT_EQ(BatchApi("/v1/completions"), GenerationApi::kCompletion);
  EXPECT_EQ(BatchApi("/v1/embeddings"), std::nullopt);
}

class LineReaderTest : public ::testing::Test {
 protected:
  LineReaderTest() : store_(*JobStore::Open(dir_.File("a.db"))) {}

  std::vector<std::string> Lines(const std::string& content) {
    const std::string id = absl::StrCat("file-", next_file_++);
    EXPECT_TRUE(store_->AddFile({id, "a", "batch", 0, 0}, content).ok());
    LineReader reader(store_.get(), id);
    std::vector<std::string> lines;
    while (true) {
      const auto line = reader.Next();
      EXPECT_TRUE(line.ok()) << line.status();
      if (!line.ok() || !line->has_value()) return lines;
      lines.push_back(**line);
      EXPECT_EQ(reader.line_number(), static_cast<int64_t>(lines.size()));
    }
  }

  const TempDir dir_;
  const std::unique_ptr<JobStore> store_;
  int next_file_ = 0;
};

TEST_F(LineReaderTest, ReadsLinesWhateverTheirEnd) {
  EXPECT_THAT(Lines(""), IsEmpty());
  EXPECT_THAT(Lines("a"), ElementsAre("a"));
  EXPECT_THAT(Lines("a\n"), ElementsAre("a"));
  EXPECT_THAT(Lines("a\r\n\r\nb\n\nc"), ElementsAre("a", "", "b", "", "c"));
}

TEST_F(LineReaderTest, ReadsLinesThatGoOverPiecesOfTheFile) {
  // The first ends with a piece, the second begins the next one, the third fills several.
  std::vector<std::string> lines = {std::string((size_t{1} << 20) - 1, 'a'), "b",
                                    std::string(size_t{5} << 19, 'c'), "d"};
  std::string content;
  for (const std::string& line : lines) absl::StrAppend(&content, line, "\n");
  EXPECT_TRUE(Lines(content) == lines);
}

TEST_F(LineReaderTest, OfALineThatIsTooLongOnlyTheBeginningIsKept) {
  const std::string longest(kMaxBatchLineBytes, 'x');
  const std::vector<std::string> lines =
      Lines(absl::StrCat(longest, "\n", longest, "\r\n", longest, longest, "\nshort\n"));
  ASSERT_THAT(lines, SizeIs(4));
  EXPECT_TRUE(lines[0] == longest && lines[1] == longest);
  EXPECT_THAT(lines[2].size(), AllOf(Gt(kMaxBatchLineBytes), Le(kMaxBatchLineBytes + 2)));
  EXPECT_EQ(lines[3], "short");
  const auto parsed = ParseBatchLine(lines[2], "/v1/completions");
  ASSERT_TRUE(std::holds_alternative<BatchError>(parsed));
  EXPECT_EQ(std::get<BatchError>(parsed).code, "line_too_long");
}

TEST_F(LineReaderTest, AFileThatIsNotThereIsAnError) {
  LineReader reader(store_.get(), "file-x");
  EXPECT_TRUE(absl::IsNotFound(reader.Next().status()));
}

}  // namespace
}  // namespace caravan
