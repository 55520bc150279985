#include "coordinator/batch/batch_book.h"

#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "coordinator/http/http_error.h"
#include "coordinator/store/job_store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::StartsWith;

class BatchBookTest : public ::testing::Test {
 protected:
  BatchBookTest() : store_(*JobStore::Open(dir_.File("a.db"))), book_(store_.get()) {}

  std::string AddFile(const std::string& purpose = "batch") {
    const auto file = book_.AddFile({"in.jsonl", purpose}, "content");
    EXPECT_TRUE(file.ok()) << file.status();
    return file->id;
  }
  Batch AddBatch() {
    const auto batch = book_.CreateBatch({AddFile(), "/v1/completions", {{"k", "v"}}});
    EXPECT_TRUE(batch.ok()) << batch.status();
    return *batch;
  }
  static void ExpectParam(const absl::Status& status, const std::string& param) {
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_EQ(ErrorJson(status)["error"]["param"], param);
  }

  const TempDir dir_;
  const std::unique_ptr<JobStore> store_;
  BatchBook book_;
};

TEST_F(BatchBookTest, AFileIsThereOnceItHasAnId) {
  const auto file = book_.AddFile({"in.jsonl"}, "content");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->id, StartsWith("file-"));
  EXPECT_EQ(file->bytes, 7);
  EXPECT_EQ(book_.GetFile(file->id)->filename, "in.jsonl");
  EXPECT_EQ(*book_.FileContent(file->id), "content");
  ASSERT_TRUE(book_.DeleteFile(file->id).ok());
  EXPECT_TRUE(absl::IsNotFound(book_.FileContent(file->id).status()));
}

TEST_F(BatchBookTest, RefusesFilesWithoutAName) {
  ExpectParam(book_.AddFile({""}, "x").status(), "filename");
  ExpectParam(book_.AddFile({"\xff"}, "x").status(), "filename");
  ExpectParam(book_.AddFile({std::string(513, 'x')}, "x").status(), "filename");
  ExpectParam(book_.AddFile({"a", ""}, "x").status(), "purpose");
}

TEST_F(BatchBookTest, PagesSayWhetherThereIsMore) {
  const std::string first = AddFile();
  const std::string second = AddFile();
  BatchBook::FileQuery query;
  query.limit = 1;
  query.ascending = true;
  EXPECT_TRUE(book_.ListFiles(query)->has_more);
  query.after = first;
  const auto page = book_.ListFiles(query);
  ASSERT_EQ(page->files.size(), 1u);
  EXPECT_EQ(page->files[0].id, second);
  EXPECT_FALSE(page->has_more);
  query.limit = 0;
  ExpectParam(book_.ListFiles(query).status(), "limit");

  const Batch older = AddBatch();
  const Batch newer = AddBatch();
  const auto batches = book_.ListBatches("", 1);
  ASSERT_EQ(batches->batches.size(), 1u);
  EXPECT_EQ(batches->batches[0].id, newer.id);
  EXPECT_TRUE(batches->has_more);
  EXPECT_FALSE(book_.ListBatches(newer.id, 1)->has_more);
  ExpectParam(book_.ListBatches("", 0).status(), "limit");
}

TEST_F(BatchBookTest, ABatchIsThereOnceItHasAnId) {
  const Batch batch = AddBatch();
  EXPECT_THAT(batch.id, StartsWith("batch_"));
  const auto read = book_.GetBatch(batch.id);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->status, BatchStatus::kValidating);
  EXPECT_EQ(read->endpoint, "/v1/completions");
  EXPECT_EQ(read->metadata, batch.metadata);
  EXPECT_EQ(read->created_at, batch.created_at);
  EXPECT_TRUE(absl::IsNotFound(book_.GetBatch("batch_x").status()));
}

TEST_F(BatchBookTest, RefusesBatchesThatCannotBe) {
  ExpectParam(book_.CreateBatch({AddFile(), "/v1/embeddings", {}}).status(), "endpoint");
  ExpectParam(book_.CreateBatch({"file-x", "/v1/completions", {}}).status(), "input_file_id");
  ExpectParam(book_.CreateBatch({AddFile("other"), "/v1/completions", {}}).status(),
              "input_file_id");
  std::map<std::string, std::string> many;
  for (int i = 0; i < 17; ++i) many.emplace(absl::StrCat(i), "v");
  for (const auto& metadata : {many, {{std::string(65, 'k'), "v"}}}) {
    ExpectParam(book_.CreateBatch({AddFile(), "/v1/completions", metadata}).status(), "metadata");
  }
  ExpectParam(
      book_.CreateBatch({AddFile(), "/v1/completions", {{"k", std::string(513, 'v')}}}).status(),
      "metadata.k");
}

TEST_F(BatchBookTest, TellsOfWork) {
  int told = 0;
  book_.SetListener([&] { ++told; });
  const Batch batch = AddBatch();
  EXPECT_EQ(told, 1);
  EXPECT_EQ(book_.CancelBatch(batch.id)->status, BatchStatus::kCancelling);
  EXPECT_EQ(told, 2);
  EXPECT_EQ(book_.CancelBatch(batch.id)->status, BatchStatus::kCancelling);
  book_.SetListener(nullptr);
  AddBatch();
  EXPECT_TRUE(absl::IsNotFound(book_.CancelBatch("batch_x").status()));
}

TEST_F(BatchBookTest, WhatHasEndedCannotBeCancelled) {
  const Batch batch = AddBatch();
  ASSERT_TRUE(store_->FailBatch(store_->OpenBatches()->front().number, {}, 1).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(book_.CancelBatch(batch.id).status()));
}

TEST_F(BatchBookTest, AWaiterHearsOfAChange) {
  const Batch batch = AddBatch();
  std::thread other([&] {
    EXPECT_TRUE(store_->CancelBatch(batch.id, 1).ok());
    book_.Changed(batch.id);
  });
  const auto changed = book_.WaitForChange(batch.id, batch.version, absl::Seconds(60));
  other.join();
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_EQ(changed->status, BatchStatus::kCancelling);
  EXPECT_GT(changed->version, batch.version);
}

TEST_F(BatchBookTest, AWaiterIsNotKeptBeyondTimeoutOrEnd) {
  const Batch batch = AddBatch();
  const auto same = book_.WaitForChange(batch.id, batch.version, absl::ZeroDuration());
  EXPECT_EQ(same->version, batch.version);
  // Another batch's change is none of its.
  book_.Changed("batch_x");
  EXPECT_EQ(book_.WaitForChange(batch.id, batch.version, absl::ZeroDuration())->version,
            batch.version);
  // A list's versions are good for waiting too.
  EXPECT_EQ(book_.ListBatches("", 1)->batches[0].status, BatchStatus::kValidating);
  ASSERT_TRUE(store_->FailBatch(store_->OpenBatches()->front().number, {}, 1).ok());
  const auto ended = book_.WaitForChange(batch.id, 1000, absl::InfiniteDuration());
  EXPECT_EQ(ended->status, BatchStatus::kFailed);
}

}  // namespace
}  // namespace caravan
