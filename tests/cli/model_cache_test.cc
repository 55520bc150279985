// Workers that fetch the files of their stage, from the coordinator and from each other.

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/cli/synth_pack.h"
#include "tests/support/test_cluster.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kModel[] = CARAVAN_SOURCE_DIR "/models/tiny-r1";

/// What a line of the log says behind `key`=; -1: nothing.
int64_t NumberIn(const std::string& log, const std::string& event, const std::string& key) {
  const size_t line = log.rfind(absl::StrCat(" ", event, " "));
  if (line == std::string::npos) return -1;
  const std::string wanted = absl::StrCat(" ", key, "=");
  const size_t at = log.find(wanted, line);
  if (at == std::string::npos) return -1;
  int64_t number = -1;
  const size_t begin = at + wanted.size();
  static_cast<void>(
      absl::SimpleAtoi(log.substr(begin, log.find_first_of(" \n", begin) - begin), &number));
  return number;
}

class ModelCacheTest : public ::testing::Test {
 protected:
  /// Packs tiny-r1, and starts a coordinator of it whose directory workers do not find.
  void StartCoordinator(std::vector<std::string> arguments = {}) {
    pack_ = cluster_.dir().File("packed");
    ASSERT_EQ(cluster_
                  .Launch("pack", {"pack", "--model", kModel, "--out", pack_, "--experts", "q4_K",
                                   "--dense", "q8_0"})
                  .Wait(),
              0);
    // This path names another directory in each process.
    cluster_.StartCoordinator(std::move(arguments), "/proc/self/cwd", pack_);
  }
  /// The same with a model of two layers, one of which has 128 experts of 0.8 MiB.
  void StartLargeCoordinator() {
    nlohmann::json config =
        nlohmann::json::parse(Slurp(CARAVAN_SOURCE_DIR "/tests/data/goldens/v3-like/config.json"));
    config["vocab_size"] = 2048;  // tiny-r1's
    config["hidden_size"] = 256;
    config["moe_intermediate_size"] = 1024;
    config["n_routed_experts"] = 128;
    config["num_hidden_layers"] = 2;
    pack_ = MakeSynthPack(cluster_, config);
    cluster_.StartCoordinator({"--tokenizer", kModel}, "/proc/self/cwd", pack_);
  }
  TestProcess& StartWorker(const std::string& name, std::vector<std::string> arguments = {}) {
    arguments.insert(arguments.end(), {"--model-cache", CacheOf(name)});
    return cluster_.StartWorker(name, std::move(arguments));
  }
  std::string CacheOf(const std::string& name) const {
    return cluster_.dir().File(absl::StrCat("cache-", name));
  }
  /// Where a file of the model lies in that cache; empty: it does not.
  std::string InCache(const std::string& name, const std::string& file) const {
    std::error_code error;
    for (const fs::directory_entry& model : fs::directory_iterator(CacheOf(name), error)) {
      const std::string path = (model.path() / file).string();
      if (FileExists(path)) return path;
    }
    return "";
  }
  void RemovePackedFiles() const {
    for (const fs::directory_entry& file : fs::directory_iterator(pack_)) {
      if (file.path().extension() == ".bin") fs::remove(file.path());
    }
  }

  TestCluster cluster_;
  std::string pack_;
};

TEST_F(ModelCacheTest, BoxesFetchOnceFromWhoeverHasIt) {
  StartCoordinator({"--workers", "2"});
  TestProcess& a = StartWorker("a");
  a.WaitForErr("joined");
  TestProcess& b = StartWorker("b");
  cluster_.ExpectAnswers();
  for (TestProcess* worker : {&a, &b}) {
    EXPECT_GT(NumberIn(worker->Err(), "files_fetched", "bytes"), 1 << 20) << worker->Err();
    EXPECT_THAT(worker->Err(), HasSubstr("from=\"coordinator: "));
    EXPECT_THAT(worker->Err(), Not(HasSubstr("reading_weights_from_coordinator")));
    EXPECT_THAT(worker->Err(), Not(HasSubstr("bad_piece")));
  }
  EXPECT_EQ(InCache("a", "head.bin"), "");
  EXPECT_EQ(InCache("b", "embedding.bin"), "");

  // Its second life has all that it needs.
  b.Signal(SIGKILL);
  b.Wait();
  cluster_.WaitForStatus([](const std::string& status) {
    return absl::StrContains(status, "serving") && !absl::StrContains(status, "box-b");
  });
  cluster_.ExpectAnswers();  // by the other alone, which fetched the rest meanwhile
  EXPECT_NE(InCache("a", "head.bin"), "");
  TestProcess& again = StartWorker("b");
  again.WaitForErr("stage_ready");
  cluster_.ExpectAnswers();
  EXPECT_EQ(NumberIn(again.Err(), "files_fetched", "bytes"), 0) << again.Err();
  EXPECT_GT(NumberIn(again.Err(), "files_fetched", "kept_bytes"), 1 << 20);

  // The coordinator has lost its files: the third has its own from the others.
  RemovePackedFiles();
  TestProcess& c = StartWorker("c");
  c.WaitForErr("stage_ready");
  cluster_.ExpectAnswers();
  EXPECT_GT(NumberIn(c.Err(), "files_fetched", "bytes"), 1 << 20) << c.Err();
  EXPECT_THAT(c.Err(), AllOf(HasSubstr("from=\"worker "), Not(HasSubstr("coordinator: "))));
}

TEST_F(ModelCacheTest, AKilledWorkersNextLifeFetchesOnlyWhatIsMissing) {
  StartLargeCoordinator();
  // The fetch is to be caught in its midst: the coordinator stands still from the first piece on.
  bool caught = false;
  int64_t total = 0;
  for (int attempt = 0; attempt < 20 && !caught; ++attempt) {
    const std::string name = absl::StrCat("box-", attempt);
    TestProcess& worker = StartWorker(name);
    ASSERT_TRUE(WaitUntil([&] {
      const std::string have = InCache(name, "layer-001.bin.have");
      return (!have.empty() && !Slurp(have).empty()) || InCache(name, "layer-001.bin") != "";
    }));
    cluster_.coordinator().Signal(SIGSTOP);
    caught = InCache(name, "layer-001.bin").empty();
    worker.Signal(SIGKILL);
    worker.Wait();
    cluster_.coordinator().Signal(SIGCONT);
    if (!caught) continue;
    EXPECT_NE(InCache(name, "layer-001.bin.part"), "");
    TestProcess& next = StartWorker(name);
    next.WaitForErr("stage_ready");
    total = NumberIn(next.Err(), "files_fetched", "bytes");
    const int64_t kept = NumberIn(next.Err(), "files_fetched", "kept_bytes");
    EXPECT_GT(total, 0) << next.Err();
    EXPECT_GT(kept, 0) << next.Err();
    int64_t model = 0;
    for (const fs::directory_entry& file : fs::directory_iterator(pack_)) {
      if (file.path().extension() != ".bin") continue;
      model += static_cast<int64_t>(file.file_size());
      const std::string copy = InCache(name, file.path().filename().string());
      ASSERT_NE(copy, "");
      EXPECT_TRUE(Slurp(copy) == Slurp(file.path().string())) << copy;
    }
    EXPECT_EQ(total + kept, model);
    EXPECT_EQ(InCache(name, "layer-001.bin.have"), "");
  }
  EXPECT_TRUE(caught);
}

TEST_F(ModelCacheTest, ExpertsMayStayInTheCache) {
  StartLargeCoordinator();
  TestProcess& worker = StartWorker("box", {"--ram", "90MiB"});
  worker.WaitForErr("stage_ready");
  cluster_.WaitForStatus("serving");
  EXPECT_THAT(worker.Err(), Not(HasSubstr("model_not_cached")));
  TestProcess& run = cluster_.StartRun("hi", {"--max-tokens", "8"});
  EXPECT_EQ(run.Wait(), 0) << run.Err();
}

TEST_F(ModelCacheTest, WhatTheDiskLostIsFetchedAgainAtTheNextStart) {
  StartLargeCoordinator();
  const std::vector<std::string> flags = {"--ram", "90MiB"};
  TestProcess& first = StartWorker("box", flags);
  first.WaitForErr("stage_ready");
  first.Signal(SIGTERM);
  EXPECT_EQ(first.Wait(), 0);
  const std::string layer = InCache("box", "layer-001.bin");
  const std::string right = Slurp(layer);
  {
    // A byte of each page: no expert is right any more.
    std::fstream file(layer, std::ios::in | std::ios::out | std::ios::binary);
    for (size_t at = right.size() / 4; at < right.size(); at += 4096) {
      file.seekp(static_cast<std::streamoff>(at));
      file.put(static_cast<char>(right[at] ^ 1));
    }
  }
  TestProcess& second = StartWorker("box", flags);
  TestProcess& run = cluster_.StartRun("hi", {"--max-tokens", "8"});
  second.WaitForErr("stage_failed");
  second.Signal(SIGTERM);
  EXPECT_EQ(second.Wait(), 0);
  TestProcess& third = StartWorker("box", flags);
  third.WaitForErr("stage_ready");
  EXPECT_THAT(third.Err(), HasSubstr("file_read_back_wrong"));
  EXPECT_GT(NumberIn(third.Err(), "files_fetched", "bytes"), 0) << third.Err();
  EXPECT_TRUE(Slurp(layer) == right);
  run.Wait();
  TestProcess& again = cluster_.StartRun("hi", {"--max-tokens", "8"});
  EXPECT_EQ(again.Wait(), 0) << again.Err();
}

TEST_F(ModelCacheTest, WhatIsWrongWithOneComesFromAnother) {
  StartCoordinator();
  TestProcess& a = StartWorker("a");
  cluster_.ExpectAnswers();
  const std::string layer = InCache("a", "layer-003.bin");
  ASSERT_NE(layer, "");
  // Of one file the right bytes are the coordinator's alone, of another the worker's.
  const auto bytes = fs::file_size(layer);
  std::ofstream(layer, std::ios::binary) << std::string(bytes, 'x');
  const std::string head = InCache("a", "head.bin");
  ASSERT_NE(head, "");
  fs::remove(fs::path(pack_) / "head.bin");
  a.WaitForErr("stage_ready");
  TestProcess& b = StartWorker("b");
  b.WaitForErr("stage_ready");
  cluster_.ExpectAnswers();
  EXPECT_TRUE(Slurp(InCache("b", "head.bin")) == Slurp(head));
  EXPECT_TRUE(Slurp(InCache("b", "layer-003.bin")) ==
              Slurp((fs::path(pack_) / "layer-003.bin").string()));
}

TEST_F(ModelCacheTest, WithoutRoomTheStageIsReadIntoMemory) {
  StartCoordinator();
  TestProcess& worker = StartWorker("box", {"--model-cache-size", "1MiB"});
  cluster_.ExpectAnswers();
  EXPECT_THAT(worker.Err(), AllOf(HasSubstr("model_not_cached"), HasSubstr(CacheOf("box")),
                                  HasSubstr("--model-cache-size is 1.00 MiB"),
                                  HasSubstr("reading_weights_from_coordinator")));
}

TEST_F(ModelCacheTest, AModelThatIsNotPackedIsReadIntoMemory) {
  cluster_.StartCoordinator({}, "/proc/self/cwd", kModel);
  TestProcess& worker = StartWorker("box");
  cluster_.ExpectAnswers();
  EXPECT_THAT(worker.Err(),
              AllOf(HasSubstr("model_not_cached"), HasSubstr("only packed models are kept"),
                    HasSubstr("reading_weights_from_coordinator")));
}

TEST_F(ModelCacheTest, WrongFlagsGetASentenceThatNamesThem) {
  const std::string file = cluster_.dir().Write("file", "x");
  const auto expect = [&](std::vector<std::string> arguments, const std::string& says) {
    arguments.insert(arguments.begin(), {"worker", "--coordinator", "127.0.0.1:1"});
    TestProcess& worker = cluster_.Launch("wrong", arguments);
    EXPECT_EQ(worker.Wait(), 2) << worker.Transcript();
    EXPECT_THAT(worker.Err(), HasSubstr(says));
  };
  expect({"--model-cache", ""}, "--model-cache");
  expect({"--model-cache", file}, absl::StrCat("--model-cache: ", file));
  expect({"--model-cache", cluster_.dir().File("c"), "--model", kModel}, "--model-cache");
  expect({"--model-cache-size", "1GiB"}, "--model-cache");
  expect({"--model-cache", cluster_.dir().File("c"), "--model-cache-size", "0"},
         "--model-cache-size");
  for (const char* percent : {"0", "101", "x", "-5"}) {
    expect({absl::StrCat("--share-files=", percent)}, "--share-files");
  }
  StartCoordinator();
  StartWorker("box").WaitForErr("joined");
  TestProcess& second = StartWorker("box");
  EXPECT_EQ(second.Wait(), 1) << second.Transcript();
  EXPECT_THAT(second.Err(), HasSubstr(absl::StrCat("--model-cache: ", CacheOf("box"),
                                                   ": another process keeps its files there")));
}

}  // namespace
}  // namespace caravan
