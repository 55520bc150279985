#include "coordinator/batch/batch_validation.h"

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "coordinator/batch/batch_book.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::string Line(const std::string& custom_id) {
  return absl::StrCat(R"({"custom_id": ")", custom_id,
                      R"(", "method": "POST", "url": "/v1/completions", "body": {}})", "\n");
}

class BatchValidationTest : public ::testing::Test {
 protected:
  BatchValidationTest() : store_(*JobStore::Open(dir_.File("a.db"))), book_(store_.get()) {}

  Batch Create(const std::string& content) {
    const auto file = book_.AddFile({"in.jsonl"}, content);
    EXPECT_TRUE(file.ok()) << file.status();
    const auto batch = book_.CreateBatch({file->id, "/v1/completions", {}});
    EXPECT_TRUE(batch.ok()) << batch.status();
    return *batch;
  }
  /// What comes of a file of this content.
  Batch Validate(const std::string& content) {
    const Batch batch = Create(content);
    BatchValidation validation(store_.get(), store_->OpenBatches()->back());
    while (true) {
      const auto done = validation.Step();
      EXPECT_TRUE(done.ok()) << done.status();
      if (!done.ok() || *done) break;
    }
    return *book_.GetBatch(batch.id);
  }

  const TempDir dir_;
  const std::unique_ptr<JobStore> store_;
  BatchBook book_;
};

TEST_F(BatchValidationTest, BeginsABatchOfManyLines) {
  std::string content;
  for (int i = 0; i < 1234; ++i)
    absl::StrAppend(&content, i % 10 == 0 ? " \n" : "", Line(absl::StrCat(i)));
  const Batch batch = Validate(content);
  EXPECT_EQ(batch.status, BatchStatus::kInProgress);
  EXPECT_THAT(batch.errors, IsEmpty());
  EXPECT_EQ(batch.counts.total, 1234);
  // The number is the file's, with its blank lines.
  const auto first = store_->NextLine(store_->OpenBatches()->back().number, 0);
  EXPECT_EQ((*first)->number, 2);
  EXPECT_EQ((*first)->custom_id, "0");
}

TEST_F(BatchValidationTest, FindsEveryLineThatIsWrong) {
  const Batch batch = Validate(Line("a") + "nonsense\n" + Line("b") + Line("a") + "[]\n");
  EXPECT_EQ(batch.status, BatchStatus::kFailed);
  ASSERT_EQ(batch.errors.size(), 3u);
  EXPECT_EQ(batch.errors[0].code, "invalid_json_line");
  EXPECT_EQ(batch.errors[0].line, 2);
  EXPECT_EQ(batch.errors[1].code, "duplicate_custom_id");
  EXPECT_EQ(batch.errors[1].line, 4);
  EXPECT_EQ(batch.errors[1].param, "custom_id");
  EXPECT_EQ(batch.errors[2].code, "invalid_json_line");
  EXPECT_EQ(batch.errors[2].line, 5);
}

TEST_F(BatchValidationTest, FindsACustomIdThatCameLongBefore) {
  std::string content;
  for (int i = 0; i < 600; ++i) absl::StrAppend(&content, Line(absl::StrCat(i)));
  const Batch batch = Validate(content + Line("0"));
  ASSERT_EQ(batch.errors.size(), 1u);
  EXPECT_THAT(batch.errors[0].message, HasSubstr("\"0\""));
  EXPECT_EQ(batch.errors[0].line, 601);
}

TEST_F(BatchValidationTest, AnEmptyFileFails) {
  for (const char* content : {"", "\n \n"}) {
    const Batch batch = Validate(content);
    EXPECT_EQ(batch.status, BatchStatus::kFailed);
    ASSERT_EQ(batch.errors.size(), 1u);
    EXPECT_EQ(batch.errors[0].code, "empty_file");
    EXPECT_EQ(batch.errors[0].line, std::nullopt);
  }
}

TEST_F(BatchValidationTest, AFileThatIsGoneFails) {
  Batch batch;
  batch.id = "batch_a";
  batch.input_file_id = "file-x";
  ASSERT_TRUE(store_->AddBatch(batch).ok());
  EXPECT_TRUE(*BatchValidation(store_.get(), store_->OpenBatches()->back()).Step());
  EXPECT_EQ(store_->GetBatch("batch_a")->errors[0].code, "file_not_found");
}

TEST_F(BatchValidationTest, OfAFileThatIsAllWrongSomeErrorsDo) {
  std::string content;
  for (int i = 0; i < 2000; ++i) content += "x\n";
  EXPECT_EQ(static_cast<int64_t>(Validate(content).errors.size()), kMaxBatchErrors);
}

TEST_F(BatchValidationTest, TooManyLinesFail) {
  std::string content;
  for (int i = 0; i <= kMaxBatchLines; ++i) absl::StrAppend(&content, Line(absl::StrCat(i)));
  const Batch batch = Validate(content);
  ASSERT_EQ(batch.errors.size(), 1u);
  EXPECT_EQ(batch.errors[0].code, "too_many_requests");
}

TEST_F(BatchValidationTest, OneThatWasBrokenOffIsBegunAnew) {
  std::string content;
  for (int i = 0; i < 600; ++i) absl::StrAppend(&content, Line(absl::StrCat(i)));
  const Batch batch = Create(content);
  const OpenBatch open = store_->OpenBatches()->back();
  EXPECT_FALSE(*BatchValidation(store_.get(), open).Step());
  BatchValidation again(store_.get(), open);
  EXPECT_FALSE(*again.Step());
  EXPECT_TRUE(*again.Step());
  EXPECT_EQ(book_.GetBatch(batch.id)->status, BatchStatus::kInProgress);
  EXPECT_EQ(book_.GetBatch(batch.id)->counts.total, 600);
}

}  // namespace
}  // namespace caravan
