#include "coordinator/store/database.h"

#include <filesystem>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr const char* kMigrations[] = {
    "CREATE TABLE words (word TEXT PRIMARY KEY, number INTEGER, bytes BLOB) STRICT;",
    "CREATE TABLE others (word TEXT) STRICT; INSERT INTO others VALUES ('b');"};
constexpr Database::Format kVersion1 = {77, absl::MakeConstSpan(kMigrations, 1)};
constexpr Database::Format kVersion2 = {77, kMigrations};

class DatabaseTest : public ::testing::Test {
 protected:
  std::unique_ptr<Database> Open(const Database::Format& format = kVersion2) {
    auto database = Database::Open(path_, format);
    EXPECT_TRUE(database.ok()) << database.status();
    return database.ok() ? *std::move(database) : nullptr;
  }
  void ExpectRefused(const std::string& why, const Database::Format& format = kVersion2) {
    const auto database = Database::Open(path_, format);
    EXPECT_EQ(database.status().code(), absl::StatusCode::kInvalidArgument) << database.status();
    EXPECT_THAT(std::string(database.status().message()), HasSubstr(path_));
    EXPECT_THAT(std::string(database.status().message()), HasSubstr(why));
  }
  /// The word's number; -1: there is no such word.
  static int64_t NumberOf(Database& database, const std::string& word) {
    auto row = database.Query("SELECT number FROM words WHERE word = ?", word);
    EXPECT_TRUE(row.ok()) << row.status();
    const auto found = row->Step();
    EXPECT_TRUE(found.ok()) << found.status();
    return *found ? row->Int(0) : -1;
  }

  const TempDir dir_;
  const std::string path_ = dir_.File("a.db");
};

TEST_F(DatabaseTest, GivesBackWhatItWasGiven) {
  const auto database = Open();
  const std::string bytes("\0\xff\n", 3);
  ASSERT_TRUE(database
                  ->Run("INSERT INTO words VALUES (?, ?, ?)", std::string("caf\u00e9"), INT64_MIN,
                        Blob{bytes})
                  .ok());
  ASSERT_TRUE(database
                  ->Run("INSERT INTO words VALUES (?, ?, ?)", std::string(),
                        std::optional<int64_t>(), Blob{})
                  .ok());
  auto rows = database->Query("SELECT * FROM words ORDER BY word DESC");
  ASSERT_TRUE(rows.ok() && *rows->Step());
  EXPECT_EQ(rows->Text(0), "caf\u00e9");
  EXPECT_EQ(rows->Int(1), INT64_MIN);
  EXPECT_EQ(rows->OptionalInt(1), INT64_MIN);
  EXPECT_EQ(rows->Text(2), bytes);
  ASSERT_TRUE(*rows->Step());
  EXPECT_EQ(rows->Text(0), "");
  EXPECT_EQ(rows->OptionalInt(1), std::nullopt);
  EXPECT_EQ(rows->OptionalText(1), std::nullopt);
  EXPECT_EQ(rows->OptionalText(2), "");
  EXPECT_FALSE(*rows->Step());
}

TEST_F(DatabaseTest, RunSaysHowManyRowsItChanged) {
  const auto database = Open();
  EXPECT_EQ(*database->Run("INSERT INTO words (word) VALUES ('a'), ('b')"), 2);
  EXPECT_EQ(*database->Run("DELETE FROM words WHERE word = ?", std::string("c")), 0);
  EXPECT_EQ(*database->Run("UPDATE words SET number = ?", int64_t{3}), 2);
}

TEST_F(DatabaseTest, AStatementIsRunAgainWithOtherValues) {
  const auto database = Open();
  auto insert = database->Prepare("INSERT INTO words VALUES (?, ?, NULL)");
  ASSERT_TRUE(insert.ok());
  insert->Bind(std::string("a"), int64_t{1});
  EXPECT_FALSE(*insert->Step());
  insert->Bind(std::string("b"), std::optional<int64_t>());  // not the 1 of before
  EXPECT_FALSE(*insert->Step());
  EXPECT_EQ(NumberOf(*database, "a"), 1);
  EXPECT_EQ(NumberOf(*database, "b"), 0);
}

TEST_F(DatabaseTest, WhatIsThereAlreadyIsAlreadyExists) {
  const auto database = Open();
  ASSERT_TRUE(database->Run("INSERT INTO words (word) VALUES ('a')").ok());
  EXPECT_TRUE(
      absl::IsAlreadyExists(database->Run("INSERT INTO words (word) VALUES ('a')").status()));
}

TEST_F(DatabaseTest, ATransactionThatIsNotCommittedIsUndone) {
  const auto database = Open();
  {
    auto transaction = Database::Transaction::Begin(database.get());
    ASSERT_TRUE(transaction.ok());
    ASSERT_TRUE(database->Run("INSERT INTO words (word, number) VALUES ('a', 1)").ok());
  }
  EXPECT_EQ(NumberOf(*database, "a"), -1);
  auto transaction = Database::Transaction::Begin(database.get());
  ASSERT_TRUE(transaction.ok());
  ASSERT_TRUE(database->Run("INSERT INTO words (word, number) VALUES ('a', 2)").ok());
  ASSERT_TRUE(transaction->Commit().ok());
  EXPECT_EQ(NumberOf(*database, "a"), 2);
}

TEST_F(DatabaseTest, KeepsWhatWasCommitted) {
  {
    const auto database = Open();
    ASSERT_TRUE(database->Run("INSERT INTO words (word, number) VALUES ('a', 1)").ok());
  }
  EXPECT_EQ(NumberOf(*Open(), "a"), 1);
}

TEST_F(DatabaseTest, BringsAnOlderVersionUpToDate) {
  {
    const auto database = Open(kVersion1);
    ASSERT_TRUE(database->Run("INSERT INTO words (word, number) VALUES ('a', 1)").ok());
  }
  const auto database = Open(kVersion2);
  EXPECT_EQ(NumberOf(*database, "a"), 1);
  auto other = database->Query("SELECT word FROM others");
  ASSERT_TRUE(other.ok() && *other->Step());
  EXPECT_EQ(other->Text(0), "b");
}

TEST_F(DatabaseTest, ANewerVersionIsRefused) {
  Open(kVersion2);
  ExpectRefused("version 2 of its format; this one knows those up to 1", kVersion1);
}

TEST_F(DatabaseTest, OneThatSomebodyHasOpenIsRefused) {
  const auto database = Open();
  ExpectRefused("another process has it open");
  ASSERT_TRUE(database->Run("INSERT INTO words (word) VALUES ('a')").ok());
}

TEST_F(DatabaseTest, ADatabaseOfAnotherProgramIsRefused) {
  Open();
  ExpectRefused("another program", {78, kMigrations});
}

TEST_F(DatabaseTest, AFileThatIsNoDatabaseIsRefused) {
  const std::string text(5000, 'x');
  dir_.Write("a.db", text);
  ExpectRefused("not a database");
  EXPECT_EQ(std::filesystem::file_size(path_), text.size());
}

TEST_F(DatabaseTest, APathThatCannotBeIsRefused) {
  EXPECT_EQ(Database::Open("", kVersion2).status().code(), absl::StatusCode::kInvalidArgument);
  for (const std::string& path : {dir_.path(), dir_.File("no/such/a.db")}) {
    const absl::Status status = Database::Open(path, kVersion2).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
  }
}

TEST_F(DatabaseTest, AnEmptyFileBecomesADatabase) {
  dir_.Write("a.db", "");
  EXPECT_NE(Open(), nullptr);
}

TEST_F(DatabaseTest, DamageIsFoundNotReadOver) {
  {
    const auto database = Open();
    auto transaction = Database::Transaction::Begin(database.get());
    ASSERT_TRUE(transaction.ok());
    for (int64_t i = 0; i < 2000; ++i) {
      ASSERT_TRUE(database->Run("INSERT INTO words VALUES (?, 1, NULL)", std::to_string(i)).ok());
    }
    ASSERT_TRUE(transaction->Commit().ok());
  }
  {
    std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(4096 * 3);
    file << std::string(4096 * 4, '\xaa');
  }
  const auto database = Open();
  auto rows = database->Query("SELECT word FROM words");
  absl::StatusOr<bool> row = rows.status().ok() ? rows->Step() : rows.status();
  while (row.ok() && *row) row = rows->Step();
  EXPECT_TRUE(absl::IsDataLoss(row.status())) << row.status();
  EXPECT_THAT(std::string(row.status().message()), HasSubstr(path_));
}

}  // namespace
}  // namespace caravan
