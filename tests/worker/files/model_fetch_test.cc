// A stage's files from real servers into a cache.

#include "worker/files/model_fetch.h"

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/mutex.h"
#include "cluster/pack_files_service.h"
#include "cluster/pipeline_plan.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tensor_table.h"
#include "tests/support/serving.h"
#include "tests/support/temp_dir.h"
#include "tests/worker/experts/expert_testing.h"
#include "worker/files/remote_file_source.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kIncarnation = 77;

ServingShare::Options NoSteps() {
  ServingShare::Options options;
  options.steps_run = [] { return false; };
  return options;
}

/// Of a process that serves, at a time that stands still: who once took a turn keeps it.
ServingShare::Options Busy(const Clock* clock) {
  ServingShare::Options options;
  options.steps_run = [] { return true; };
  options.clock = clock;
  return options;
}

/// A process that gives files.
class Giver {
 public:
  explicit Giver(PackFilesService::List list, ServingShare::Options share = NoSteps())
      : share_(std::move(share)), service_(kIncarnation, std::move(list), &share_) {}
  explicit Giver(const PackedModel& model, ServingShare::Options share = NoSteps())
      : Giver(
            [files = *FilesOfPack(model), fingerprint = model.fingerprint()](uint64_t wanted) {
              return wanted == fingerprint ? files : std::vector<ShelvedFile>();
            },
            std::move(share)) {}
  std::string address() const { return serving_.address(); }
  ServingShare& share() { return share_; }

 private:
  ServingShare share_;
  PackFilesService service_;
  const Serving serving_{&service_};
};

/// Says that it has all files, and never gives a byte.
class HangingFiles final : public v1::PackFiles::Service {
 public:
  explicit HangingFiles(const PackedModel& model) : files_(*FilesOfPack(model)) {}
  grpc::Status ListFiles(grpc::ServerContext*, const v1::ListFilesRequest*,
                         v1::ListFilesResponse* response) override {
    for (const ShelvedFile& file : files_) response->add_files()->set_name(file.name);
    return grpc::Status::OK;
  }
  grpc::Status ReadFile(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::ReadFileResponse, v1::ReadFileRequest>* stream) override {
    v1::ReadFileRequest request;
    while (stream->Read(&request)) {
      MutexLock lock(&mu_);
      ++asked_;
      changed_.SignalAll();
    }
    return grpc::Status::OK;
  }
  /// False: it was not within a minute.
  bool WaitUntilAsked(int times) {
    const absl::Duration deadline = SteadyClock().Now() + absl::Minutes(1);
    MutexLock lock(&mu_);
    while (asked_ < times) {
      const absl::Duration left = deadline - SteadyClock().Now();
      if (left <= absl::ZeroDuration()) return false;
      changed_.WaitWithTimeout(&mu_, left);
    }
    return true;
  }

 private:
  const std::vector<ShelvedFile> files_;
  Mutex mu_;
  CondVar changed_;
  int asked_ ABSL_GUARDED_BY(mu_) = 0;
};

class ModelFetchTest : public ::testing::Test {
 protected:
  ModelFetchTest() : cache_(*ModelCache::Open({dir_.File("cache")})) {}

  RemoteFileSource::Options SourceAt(const std::string& address, const std::string& name) {
    RemoteFileSource::Options options;
    options.peer.name = name;
    options.peer.address = address;
    options.peer.incarnation = kIncarnation;
    options.fingerprint = toy_.model().fingerprint();
    options.share = &share_;
    return options;
  }
  std::unique_ptr<RemoteFileSource> Source(const Giver& giver, const std::string& name,
                                           uint64_t incarnation = kIncarnation) {
    RemoteFileSource::Options options = SourceAt(giver.address(), name);
    options.peer.incarnation = incarnation;
    return std::make_unique<RemoteFileSource>(options);
  }
  v1::LoadStage Order(const StageSpec& stage) const {
    v1::LoadStage order;
    *order.mutable_stage() = ToProto(stage);
    order.mutable_model()->set_fingerprint(toy_.model().fingerprint());
    order.mutable_model()->set_config_json(toy_.model().config_json());
    return order;
  }
  absl::StatusOr<CachedModel> Fetch(const v1::LoadStage& order,
                                    const std::vector<FileSource*>& sources) {
    return FetchModel(order, *cache_, sources, [](int64_t, int64_t) { return true; }, {});
  }
  std::string CacheDirectory() const { return cache_->DirectoryOf(toy_.model().fingerprint()); }
  static std::vector<std::string> NamesOf(const std::vector<PackedFile>& files) {
    std::vector<std::string> names;
    for (const PackedFile& file : files) names.push_back(file.name);
    return names;
  }

  const PackedToy toy_;
  const TempDir dir_;
  const std::unique_ptr<ModelCache> cache_;
  ServingShare share_{NoSteps()};
};

TEST_F(ModelFetchTest, AStageNeedsTheFilesThatItsTensorsLieIn) {
  const PackManifest& manifest = toy_.model().manifest();
  const auto files_of = [&](const StageSpec& stage) {
    return NamesOf(FilesOfStage(manifest, toy_.config(), stage));
  };
  EXPECT_THAT(files_of({0, 1, true, false, false}), ElementsAre("embedding.bin", "layer-000.bin"));
  EXPECT_THAT(files_of({1, 2, false, false, false}), ElementsAre("layer-001.bin"));
  EXPECT_THAT(files_of({2, 3, false, true, false}), ElementsAre("layer-002.bin", "head.bin"));
  EXPECT_THAT(files_of({2, 3, false, true, true}),
              ElementsAre("embedding.bin", "layer-002.bin", "head.bin", "mtp.bin"));
}

TEST_F(ModelFetchTest, TheCacheHoldsTheStageByteForByte) {
  const Giver giver(toy_.model());
  const auto coordinator = Source(giver, "coordinator");
  const StageSpec stage = {1, 2, false, false, false};
  int64_t last_done = 0;
  int64_t last_total = 0;
  absl::StatusOr<CachedModel> cached = FetchModel(Order(stage), *cache_, {coordinator.get()},
                                                  [&](int64_t done, int64_t total) {
                                                    last_done = done;
                                                    last_total = total;
                                                    return true;
                                                  },
                                                  {});
  ASSERT_TRUE(cached.ok()) << cached.status();
  EXPECT_EQ(cached->model->fingerprint(), toy_.model().fingerprint());
  EXPECT_TRUE(cached->model->is_partial());
  for (const TensorSpec& tensor : StageTensors(toy_.config(), stage)) {
    const TensorInfo* const info = cached->model->Find(tensor.name);
    ASSERT_NE(info, nullptr) << tensor.name;
    std::vector<std::byte> bytes(static_cast<size_t>(info->num_bytes()));
    std::vector<std::byte> expected(bytes.size());
    ASSERT_TRUE(cached->model->Read(tensor.name, absl::MakeSpan(bytes)).ok());
    ASSERT_TRUE(toy_.model().Read(tensor.name, absl::MakeSpan(expected)).ok());
    EXPECT_TRUE(bytes == expected) << tensor.name;
  }
  EXPECT_EQ(cached->model->FindExperts(1)->path, CacheDirectory() + "/layer-001.bin");
  EXPECT_EQ(cached->model->Find("lm_head.weight"), nullptr);
  EXPECT_FALSE(FileExists(CacheDirectory() + "/layer-002.bin"));
  // What is fetched, then loaded.
  EXPECT_EQ(last_done, static_cast<int64_t>(std::filesystem::file_size(toy_.PathOf(1))));
  EXPECT_GT(last_total, last_done);
  EXPECT_LE(last_total, 2 * last_done);
}

TEST_F(ModelFetchTest, WhatIsThereIsOpenedWithoutAsking) {
  auto giver = std::make_unique<Giver>(toy_.model());
  const auto coordinator = Source(*giver, "coordinator");
  const v1::LoadStage order = Order({0, 1, true, false, false});
  ASSERT_TRUE(Fetch(order, {coordinator.get()}).ok());
  giver.reset();
  EXPECT_TRUE(Fetch(order, {coordinator.get()}).ok());
}

TEST_F(ModelFetchTest, OfDoubtedFilesOnlyWhatIsWrongComesAgain) {
  const Giver giver(toy_.model());
  const auto coordinator = Source(giver, "coordinator");
  const v1::LoadStage order = Order({1, 3, false, true, false});
  absl::StatusOr<CachedModel> cached = Fetch(order, {coordinator.get()});
  ASSERT_TRUE(cached.ok()) << cached.status();
  const std::string path = cached->model->FindExperts(2)->path;
  const int64_t at = toy_.OffsetOf(2, 5) + 100;
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.put('?');
  }
  EXPECT_FALSE(cached->model->CheckHashes([](int64_t, int64_t) { return true; }).ok());
  cache_->Doubt(*cached->lease);
  // Who has it open reads on.
  std::vector<std::byte> bytes(
      static_cast<size_t>(cached->model->Find("lm_head.weight")->num_bytes()));
  EXPECT_TRUE(cached->model->Read("lm_head.weight", absl::MakeSpan(bytes)).ok());

  ::testing::internal::CaptureStderr();
  absl::StatusOr<CachedModel> again = Fetch(order, {coordinator.get()});
  const std::string log = ::testing::internal::GetCapturedStderr();
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->model->CheckHashes([](int64_t, int64_t) { return true; }).ok());
  // All experts of a toy are one piece.
  EXPECT_THAT(log, HasSubstr("file_read_back_wrong"));
  EXPECT_THAT(log, HasSubstr(absl::StrCat(" bytes=", PackedToy::kExperts * toy_.run_bytes(), " ")));
}

TEST_F(ModelFetchTest, AWorkersCacheServesTheNextOne) {
  const Giver giver(toy_.model());
  const auto coordinator = Source(giver, "coordinator");
  const v1::LoadStage order = Order({1, 3, false, true, false});
  ASSERT_TRUE(Fetch(order, {coordinator.get()}).ok());

  // The second coordinator has lost all files but the manifest.
  const std::string fingerprint_directory = CacheDirectory();
  const Giver bare([&](uint64_t) {
    std::vector<ShelvedFile> files = *FilesOfPack(toy_.model());
    files.resize(1);
    return files;
  });
  const Giver worker([&](uint64_t fingerprint) { return cache_->List(fingerprint); });
  const auto second_coordinator = Source(bare, "coordinator");
  const auto from_worker = Source(worker, "worker 1 (box-a)");
  const auto second_cache = *ModelCache::Open({dir_.File("second")});
  absl::StatusOr<CachedModel> cached =
      FetchModel(order, *second_cache, {second_coordinator.get(), from_worker.get()},
                 [](int64_t, int64_t) { return true; }, {});
  ASSERT_TRUE(cached.ok()) << cached.status();
  EXPECT_TRUE(cached->model->CheckHashes([](int64_t, int64_t) { return true; }).ok());
}

TEST_F(ModelFetchTest, AManifestThatIsNotTheOrdersIsRefused) {
  const Giver giver([&](uint64_t) {
    std::vector<ShelvedFile> files = *FilesOfPack(toy_.model());
    files[0].path = dir_.Write("manifest", "{}");
    files[0].bytes = 2;
    return files;
  });
  const auto coordinator = Source(giver, "coordinator");
  EXPECT_EQ(Fetch(Order({0, 1, true, false, false}), {coordinator.get()}).status().code(),
            absl::StatusCode::kAborted);
}

TEST_F(ModelFetchTest, AModelThatIsNotPackedIsSaidToBeNone) {
  const Giver giver([](uint64_t) { return std::vector<ShelvedFile>(); });
  const auto coordinator = Source(giver, "coordinator");
  const absl::Status status =
      Fetch(Order({0, 1, true, false, false}), {coordinator.get()}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("only packed models are kept"));
}

TEST_F(ModelFetchTest, OnlyListedFilesAreGivenAndOnlyToWhoMeansThisProcess) {
  const Giver giver(toy_.model());
  const auto read = [&](RemoteFileSource& source, const std::string& file, int64_t offset,
                        int64_t size) {
    return source
        .Read(file, offset, size, [](absl::Span<const std::byte>) { return absl::OkStatus(); }, {})
        .status();
  };
  const auto source = Source(giver, "coordinator");
  const auto bytes = static_cast<int64_t>(std::filesystem::file_size(toy_.PathOf(1)));
  EXPECT_TRUE(read(*source, "layer-001.bin", 0, bytes).ok());
  EXPECT_TRUE(read(*source, "layer-001.bin", bytes - 1, 1).ok());
  for (const std::string name : {"config.json", "../config.json", "/etc/passwd", "./layer-001.bin",
                                 "layer-001.bin/", "", "."}) {
    EXPECT_EQ(read(*source, name, 0, 1).code(), absl::StatusCode::kNotFound) << name;
  }
  EXPECT_EQ(read(*source, "layer-001.bin", bytes, 1).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(read(*source, "layer-001.bin", INT64_MAX - 1, 1).code(), absl::StatusCode::kOutOfRange);
  const auto stale = Source(giver, "coordinator", kIncarnation + 1);
  EXPECT_EQ(read(*stale, "layer-001.bin", 0, 1).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(stale->List({}).status().code(), absl::StatusCode::kAborted);
}

TEST_F(ModelFetchTest, WhoSendsNoReceiptLosesItsTurnToOthers) {
  // Where steps run parts pass one by one.
  ServingShare::Options options = NoSteps();
  options.steps_run = [] { return true; };
  options.share = 0.9;
  ServingShare share(options);
  PackFilesService service(
      kIncarnation, [&](uint64_t) { return *FilesOfPack(toy_.model()); }, &share, absl::Seconds(2));
  const Serving serving(&service);
  const auto stub = v1::PackFiles::NewStub(serving.channel());
  v1::ReadFileRequest request;
  request.mutable_part()->set_fingerprint(toy_.model().fingerprint());
  request.mutable_part()->set_incarnation(kIncarnation);
  request.mutable_part()->set_name("layer-001.bin");
  request.mutable_part()->set_size(16);
  v1::ReadFileResponse response;
  const auto ask = [&](auto& stream) { return stream.Write(request) && stream.Read(&response); };
  grpc::ClientContext silent_context;
  const auto silent = stub->ReadFile(&silent_context);
  ASSERT_TRUE(ask(*silent));
  EXPECT_EQ(response.data().size(), 16u);
  grpc::ClientContext other_context;
  const auto other = stub->ReadFile(&other_context);
  // It is told to wait, until the silent one's call is ended.
  do {
    ASSERT_TRUE(ask(*other));
  } while (response.wait_us() > 0);
  EXPECT_EQ(response.data().size(), 16u);
  v1::ReadFileRequest receipt;
  receipt.mutable_received();
  EXPECT_TRUE(other->Write(receipt));
  other->WritesDone();
  EXPECT_TRUE(other->Finish().ok());
  EXPECT_EQ(silent->Finish().error_code(), grpc::StatusCode::CANCELLED);

  // Nobody is a process that is not meant.
  request.mutable_part()->set_incarnation(0);
  grpc::ClientContext nobody_context;
  const auto nobody = stub->ReadFile(&nobody_context);
  EXPECT_FALSE(ask(*nobody));
  EXPECT_EQ(nobody->Finish().error_code(), grpc::StatusCode::ABORTED);
}

TEST_F(ModelFetchTest, AGiverWithoutATurnToGiveSaysAtOnceHowLongToWait) {
  const SimulatedClock clock;
  Giver giver(toy_.model(), Busy(&clock));
  const auto source = Source(giver, "worker 1");
  int64_t came = 0;
  const auto read = [&] {
    return source->Read("layer-001.bin", 0, 16,
                        [&came](absl::Span<const std::byte> bytes) {
                          came += static_cast<int64_t>(bytes.size());
                          return absl::OkStatus();
                        },
                        {});
  };
  ASSERT_EQ(giver.share().TryBegin(), absl::ZeroDuration());  // another part passes
  absl::StatusOr<absl::Duration> wait = read();
  ASSERT_TRUE(wait.ok()) << wait.status();
  EXPECT_GE(*wait, ServingShare::kLook);
  EXPECT_EQ(came, 0);
  giver.share().End(absl::Milliseconds(10));
  wait = read();
  ASSERT_TRUE(wait.ok()) << wait.status();
  EXPECT_NEAR(absl::ToDoubleMilliseconds(*wait), 190, 0.01);
  EXPECT_EQ(came, 0);
}

TEST_F(ModelFetchTest, ATakerThatServesTooIsNotHeldUpByABusyGiver) {
  const Giver idle(toy_.model());
  const SimulatedClock clock;
  Giver busy(toy_.model(), Busy(&clock));
  ASSERT_EQ(busy.share().TryBegin(), absl::ZeroDuration());  // for ever, as its time stands still
  // Its own turns go to one part at a time.
  ServingShare::Options own = NoSteps();
  own.steps_run = [] { return true; };
  own.share = 0.9;
  ServingShare own_share(own);
  RemoteFileSource::Options options = SourceAt(idle.address(), "coordinator");
  options.share = &own_share;
  RemoteFileSource coordinator(options);
  options = SourceAt(busy.address(), "worker 1");
  options.share = &own_share;
  RemoteFileSource worker(options);
  ::testing::internal::CaptureStderr();
  const absl::StatusOr<CachedModel> cached =
      Fetch(Order({0, 3, true, true, false}), {&coordinator, &worker});
  const std::string log = ::testing::internal::GetCapturedStderr();
  ASSERT_TRUE(cached.ok()) << cached.status();
  EXPECT_TRUE(cached->model->CheckHashes([](int64_t, int64_t) { return true; }).ok());
  EXPECT_THAT(log, ::testing::Not(HasSubstr("worker 1: ")));
}

TEST_F(ModelFetchTest, ASourceThatNeverAnswersLosesItsPiecesToOthers) {
  HangingFiles hanging(toy_.model());
  const Serving serving(&hanging);
  RemoteFileSource::Options options = SourceAt(serving.address(), "worker 1");
  options.part_timeout = absl::Milliseconds(50);
  RemoteFileSource worker(options);
  EXPECT_EQ(worker
                .Read("layer-001.bin", 0, 16,
                      [](absl::Span<const std::byte>) { return absl::OkStatus(); }, {})
                .status()
                .code(),
            absl::StatusCode::kDeadlineExceeded);
  // The hanging one is the first that is asked for a piece: the other waits until it has one.
  const Giver patient([&](uint64_t) {
    EXPECT_TRUE(hanging.WaitUntilAsked(2));
    return *FilesOfPack(toy_.model());
  });
  RemoteFileSource::Options patience = SourceAt(patient.address(), "worker 2");
  patience.list_timeout = absl::Minutes(2);
  RemoteFileSource late(patience);
  const Giver bare([&](uint64_t) {
    std::vector<ShelvedFile> files = *FilesOfPack(toy_.model());
    files.resize(1);
    return files;
  });
  const auto manifest = Source(bare, "coordinator");
  const absl::StatusOr<CachedModel> cached =
      Fetch(Order({0, 3, true, true, false}), {manifest.get(), &worker, &late});
  ASSERT_TRUE(cached.ok()) << cached.status();
  EXPECT_TRUE(cached->model->CheckHashes([](int64_t, int64_t) { return true; }).ok());
}

TEST_F(ModelFetchTest, ASourceThatVanishesIsUnavailable) {
  auto giver = std::make_unique<Giver>(toy_.model());
  const auto source = Source(*giver, "coordinator");
  giver.reset();
  EXPECT_EQ(source->List({}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(source
                ->Read("layer-001.bin", 0, 1,
                       [](absl::Span<const std::byte>) { return absl::OkStatus(); }, {})
                .status()
                .code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace caravan
