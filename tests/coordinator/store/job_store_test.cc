#include "coordinator/store/job_store.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class JobStoreTest : public ::testing::Test {
 protected:
  JobStoreTest() { Reopen(); }

  void Reopen() {
    store_.reset();
    auto store = JobStore::Open(dir_.File("a.db"));
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  void AddFile(const std::string& id, const std::string& content,
               const std::string& purpose = "batch") {
    const absl::Status added = store_->AddFile(
        {id, absl::StrCat(id, ".jsonl"), purpose, static_cast<int64_t>(content.size()), 5},
        content);
    ASSERT_TRUE(added.ok()) << added;
  }
  /// A batch of lines 1, 2, ... that is kInProgress; returns its number.
  int64_t BeginBatch(const std::string& id, int num_lines) {
    const int64_t number = AddBatch(id);
    std::vector<BatchLine> lines;
    for (int i = 1; i <= num_lines; ++i) {
      lines.push_back({i, absl::StrCat("line-", i), "{}", UINT64_MAX - static_cast<uint64_t>(i)});
    }
    EXPECT_TRUE(store_->AddLines(number, lines).ok());
    EXPECT_TRUE(store_->BeginBatch(number, 20).ok());
    return number;
  }
  int64_t AddBatch(const std::string& id) {
    Batch batch;
    batch.id = id;
    batch.endpoint = "/v1/completions";
    batch.input_file_id = "file-in";
    batch.metadata = {{"k", "\"v\"\n"}};
    batch.created_at = 10;
    EXPECT_TRUE(store_->AddBatch(batch).ok());
    return store_->OpenBatches()->back().number;
  }
  Batch Get(const std::string& id) {
    auto batch = store_->GetBatch(id);
    EXPECT_TRUE(batch.ok()) << batch.status();
    return batch.ok() ? *std::move(batch) : Batch();
  }
  std::string Content(const std::string& id) {
    std::string content;
    int64_t cursor = 0;
    while (true) {
      const auto piece = store_->ReadFile(id, cursor);
      EXPECT_TRUE(piece.ok()) << piece.status();
      if (!piece.ok() || piece->empty()) return content;
      content += *piece;
    }
  }
  std::vector<std::string> FileIds(const std::string& after, int64_t limit,
                                   const std::string& purpose, bool ascending) {
    const auto files = store_->ListFiles(after, limit, purpose, ascending);
    EXPECT_TRUE(files.ok()) << files.status();
    std::vector<std::string> ids;
    for (const FileObject& file : *files) ids.push_back(file.id);
    return ids;
  }
  void Record(const std::vector<LineGrowth>& growth, const std::vector<LineResult>& results) {
    const absl::Status recorded = store_->Record(growth, results, 30);
    ASSERT_TRUE(recorded.ok()) << recorded;
  }
  static LineGrowth Growth(LineRef where, int64_t choice, int64_t position,
                           std::vector<uint32_t> tokens) {
    LineGrowth growth = {where, choice, position, {}};
    for (const uint32_t token : tokens) growth.growth.add_tokens()->set_token_id(token);
    return growth;
  }

  const TempDir dir_;
  std::unique_ptr<JobStore> store_;
};

TEST_F(JobStoreTest, AFileOutlivesTheProcess) {
  std::string content;
  for (int i = 0; content.size() < (size_t{5} << 19); ++i) absl::StrAppend(&content, i, "\n");
  AddFile("file-a", content);
  AddFile("file-b", "");
  Reopen();
  EXPECT_EQ(Content("file-a"), content);
  EXPECT_EQ(Content("file-b"), "");
  const auto file = store_->GetFile("file-a");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->filename, "file-a.jsonl");
  EXPECT_EQ(file->purpose, "batch");
  EXPECT_EQ(file->bytes, static_cast<int64_t>(content.size()));
  EXPECT_EQ(file->created_at, 5);
}

TEST_F(JobStoreTest, ListsFilesInPages) {
  for (const char* id : {"file-a", "file-b", "file-c"}) AddFile(id, "x");
  AddFile("file-d", "x", "other");
  EXPECT_THAT(FileIds("", 10, "", false), ElementsAre("file-d", "file-c", "file-b", "file-a"));
  EXPECT_THAT(FileIds("", 2, "batch", true), ElementsAre("file-a", "file-b"));
  EXPECT_THAT(FileIds("file-b", 2, "batch", true), ElementsAre("file-c"));
  EXPECT_THAT(FileIds("file-b", 2, "batch", false), ElementsAre("file-a"));
  EXPECT_THAT(std::string(store_->ListFiles("file-x", 2, "", false).status().message()),
              HasSubstr("no file \"file-x\""));
}

TEST_F(JobStoreTest, ADeletedFileIsGone) {
  AddFile("file-a", "x");
  ASSERT_TRUE(store_->DeleteFile("file-a").ok());
  int64_t cursor = 0;
  for (const absl::Status& status :
       {store_->DeleteFile("file-a"), store_->GetFile("file-a").status(),
        store_->ReadFile("file-a", cursor).status()}) {
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("file-a"));
  }
}

TEST_F(JobStoreTest, AFileThatABatchIsMadeOfCannotBeDeleted) {
  AddFile("file-in", "x");
  const int64_t number = AddBatch("batch_a");
  EXPECT_TRUE(absl::IsFailedPrecondition(store_->DeleteFile("file-in")));
  ASSERT_TRUE(store_->AddLines(number, {{1, "a", "{}", 0}}).ok());
  ASSERT_TRUE(store_->BeginBatch(number, 20).ok());
  EXPECT_TRUE(store_->DeleteFile("file-in").ok());
}

TEST_F(JobStoreTest, ABatchOutlivesTheProcess) {
  BeginBatch("batch_a", 2);
  Reopen();
  const Batch batch = Get("batch_a");
  EXPECT_EQ(batch.endpoint, "/v1/completions");
  EXPECT_EQ(batch.input_file_id, "file-in");
  EXPECT_EQ(batch.metadata.at("k"), "\"v\"\n");
  EXPECT_EQ(batch.status, BatchStatus::kInProgress);
  EXPECT_EQ(batch.counts.total, 2);
  EXPECT_EQ(batch.created_at, 10);
  EXPECT_EQ(batch.in_progress_at, 20);
  EXPECT_EQ(batch.output_file_id, std::nullopt);
  ASSERT_EQ(store_->OpenBatches()->size(), 1u);
  EXPECT_TRUE(store_->OpenBatches()->front().begun);
}

TEST_F(JobStoreTest, ListsBatchesNewestFirst) {
  for (const char* id : {"batch_a", "batch_b", "batch_c"}) AddBatch(id);
  const auto page = store_->ListBatches("", 2);
  ASSERT_EQ(page->size(), 2u);
  EXPECT_EQ((*page)[0].id, "batch_c");
  const auto rest = store_->ListBatches("batch_b", 2);
  ASSERT_EQ(rest->size(), 1u);
  EXPECT_EQ((*rest)[0].id, "batch_a");
  EXPECT_TRUE(absl::IsNotFound(store_->ListBatches("batch_x", 2).status()));
}

TEST_F(JobStoreTest, ALineOfAnotherCustomIdIsAddedOnce) {
  const int64_t number = AddBatch("batch_a");
  const auto added = store_->AddLines(number, {{1, "a", "{}", 1}, {2, "a", "{}", 2}});
  EXPECT_THAT(*added, ElementsAre(true, false));
  EXPECT_THAT(*store_->AddLines(number, {{3, "b", "{}", 3}, {4, "a", "{}", 4}}),
              ElementsAre(true, false));
  // Another batch's is another's.
  EXPECT_THAT(*store_->AddLines(AddBatch("batch_b"), {{1, "a", "{}", 1}}), ElementsAre(true));
}

TEST_F(JobStoreTest, LinesComeInOrderWithWhatTheyWereGiven) {
  const int64_t number = BeginBatch("batch_a", 2);
  const auto first = store_->NextLine(number, 0);
  ASSERT_TRUE(first.ok() && first->has_value());
  EXPECT_EQ((*first)->number, 1);
  EXPECT_EQ((*first)->custom_id, "line-1");
  EXPECT_EQ((*first)->body, "{}");
  EXPECT_EQ((*first)->draw_seed, UINT64_MAX - 1);
  EXPECT_EQ((*store_->NextLine(number, 1))->number, 2);
  EXPECT_FALSE(store_->NextLine(number, 2)->has_value());
}

TEST_F(JobStoreTest, GrowthIsKeptInOrderOfPosition) {
  const int64_t number = BeginBatch("batch_a", 2);
  Record({Growth({number, 1}, 0, 0, {5, 6}), Growth({number, 1}, 1, 0, {7})}, {});
  Record({Growth({number, 1}, 0, 2, {8})}, {});
  Reopen();
  const auto growth = store_->ReadGrowth({number, 1});
  ASSERT_TRUE(growth.ok()) << growth.status();
  ASSERT_EQ(growth->size(), 3u);
  EXPECT_EQ((*growth)[0].growth.tokens(1).token_id(), 6u);
  EXPECT_EQ((*growth)[1].position, 2);
  EXPECT_EQ((*growth)[1].growth.tokens(0).token_id(), 8u);
  EXPECT_EQ((*growth)[2].choice, 1);
  EXPECT_THAT(*store_->ReadGrowth({number, 2}), IsEmpty());
}

TEST_F(JobStoreTest, GrowthTakesThePlaceOfWhatStoodThere) {
  const int64_t number = BeginBatch("batch_a", 1);
  Record({Growth({number, 1}, 0, 0, {5})}, {});
  Record({Growth({number, 1}, 0, 0, {6, 7})}, {});
  const auto growth = store_->ReadGrowth({number, 1});
  ASSERT_EQ(growth->size(), 1u);
  EXPECT_EQ((*growth)[0].growth.tokens_size(), 2);
}

TEST_F(JobStoreTest, ResultsStandInOrderOfTheirLinesAndEndTheBatch) {
  const int64_t number = BeginBatch("batch_a", 3);
  Record({Growth({number, 3}, 0, 0, {5})}, {});
  Record({}, {{{number, 3}, false, "three\n"}, {{number, 2}, true, "two\n"}});
  Batch batch = Get("batch_a");
  EXPECT_EQ(batch.counts.completed, 1);
  EXPECT_EQ(batch.counts.failed, 1);
  EXPECT_THAT(*store_->ReadGrowth({number, 3}), IsEmpty());
  // Not for anybody to see yet.
  EXPECT_THAT(FileIds("", 10, "", false), IsEmpty());

  Record({}, {{{number, 1}, false, "one\n"}});
  batch = Get("batch_a");
  EXPECT_EQ(batch.status, BatchStatus::kCompleted);
  EXPECT_EQ(batch.completed_at, 30);
  EXPECT_EQ(batch.cancelled_at, std::nullopt);
  ASSERT_TRUE(batch.output_file_id.has_value() && batch.error_file_id.has_value());
  EXPECT_EQ(Content(*batch.output_file_id), "one\nthree\n");
  EXPECT_EQ(Content(*batch.error_file_id), "two\n");
  EXPECT_EQ(store_->GetFile(*batch.output_file_id)->bytes, 10);
  EXPECT_EQ(store_->GetFile(*batch.output_file_id)->purpose, "batch_output");
  EXPECT_THAT(*store_->OpenBatches(), IsEmpty());
}

TEST_F(JobStoreTest, AResultCountsOnce) {
  const int64_t number = BeginBatch("batch_a", 2);
  Record({}, {{{number, 1}, false, "one\n"}});
  Record({}, {{{number, 1}, false, "one\n"}});
  EXPECT_EQ(Get("batch_a").counts.completed, 1);
}

TEST_F(JobStoreTest, AFileWithNothingInItIsNone) {
  const int64_t number = BeginBatch("batch_a", 1);
  Record({}, {{{number, 1}, true, "one\n"}});
  const Batch batch = Get("batch_a");
  EXPECT_EQ(batch.output_file_id, std::nullopt);
  EXPECT_THAT(FileIds("", 10, "", false), ElementsAre(*batch.error_file_id));
}

TEST_F(JobStoreTest, AFailedBatchKeepsItsErrors) {
  const int64_t number = AddBatch("batch_a");
  ASSERT_TRUE(store_->AddLines(number, {{1, "a", "{}", 1}}).ok());
  const std::vector<BatchError> errors = {{"code_a", "message \xff", "body", 7},
                                          {"code_b", "message", std::nullopt, std::nullopt}};
  ASSERT_TRUE(store_->FailBatch(number, errors, 20).ok());
  Reopen();
  const Batch batch = Get("batch_a");
  EXPECT_EQ(batch.status, BatchStatus::kFailed);
  EXPECT_EQ(batch.failed_at, 20);
  ASSERT_EQ(batch.errors.size(), 2u);
  EXPECT_EQ(batch.errors[0].code, "code_a");
  EXPECT_EQ(batch.errors[0].param, "body");
  EXPECT_EQ(batch.errors[0].line, 7);
  EXPECT_EQ(batch.errors[1].line, std::nullopt);
  EXPECT_FALSE(store_->NextLine(number, 0)->has_value());
}

TEST_F(JobStoreTest, ACancelledBatchEndsWithItsLastLine) {
  const int64_t number = BeginBatch("batch_a", 1);
  ASSERT_TRUE(store_->CancelBatch("batch_a", 25).ok());
  ASSERT_TRUE(store_->EndBatch(number, 26).ok());  // a line is left
  EXPECT_EQ(Get("batch_a").status, BatchStatus::kCancelling);
  EXPECT_EQ(Get("batch_a").cancelling_at, 25);
  Record({}, {{{number, 1}, true, "one\n"}});
  EXPECT_EQ(Get("batch_a").status, BatchStatus::kCancelled);
  EXPECT_EQ(Get("batch_a").cancelled_at, 30);
  EXPECT_EQ(Get("batch_a").completed_at, std::nullopt);
}

TEST_F(JobStoreTest, ABatchThatIsCancelledDoesNotBegin) {
  const int64_t number = AddBatch("batch_a");
  ASSERT_TRUE(store_->CancelBatch("batch_a", 25).ok());
  ASSERT_TRUE(store_->BeginBatch(number, 26).ok());
  ASSERT_TRUE(store_->FailBatch(number, {}, 26).ok());
  EXPECT_EQ(Get("batch_a").status, BatchStatus::kCancelling);
  EXPECT_FALSE(store_->OpenBatches()->front().begun);
  ASSERT_TRUE(store_->EndBatch(number, 27).ok());
  EXPECT_EQ(Get("batch_a").status, BatchStatus::kCancelled);
  EXPECT_TRUE(absl::IsNotFound(store_->CancelBatch("batch_x", 1)));
}

TEST_F(JobStoreTest, WhatAnotherModelGeneratedIsForgotten) {
  const int64_t number = BeginBatch("batch_a", 1);
  ASSERT_TRUE(store_->UseModel(UINT64_MAX).ok());
  Record({Growth({number, 1}, 0, 0, {5})}, {});
  ASSERT_TRUE(store_->UseModel(UINT64_MAX).ok());
  EXPECT_EQ(store_->ReadGrowth({number, 1})->size(), 1u);
  ASSERT_TRUE(store_->UseModel(7).ok());
  EXPECT_THAT(*store_->ReadGrowth({number, 1}), IsEmpty());
  EXPECT_TRUE(store_->NextLine(number, 0)->has_value());
}

}  // namespace
}  // namespace caravan
