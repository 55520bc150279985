// A worker's view of the coordinator's checkpoint, through the real service.

#include "worker/remote_tensor_source.h"

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/bounded_queue.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "cluster/grpc_transport.h"
#include "coordinator/model_files_service.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/golden.h"
#include "tests/support/serving.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Hours(1);  // what ends before does so of itself
constexpr uint64_t kFingerprint = 5;

ServingShare::Options NoSteps() {
  ServingShare::Options options;
  options.steps_run = [] { return false; };
  return options;
}

/// The other end's bytes are few enough for one part.
using Part = std::function<grpc::Status(
    const v1::TensorPart& part,
    grpc::ServerReaderWriter<v1::ReadTensorResponse, v1::ReadTensorRequest>& stream)>;

/// Does what the test says, which may change between calls.
class FakeModelFiles final : public v1::ModelFiles::Service {
 public:
  using List = std::function<grpc::Status(v1::ListTensorsResponse&)>;

  void set_list(List list) {
    MutexLock lock(&mu_);
    list_ = std::move(list);
  }
  void set_on_part(Part on_part) {
    MutexLock lock(&mu_);
    on_part_ = std::move(on_part);
  }

  grpc::Status ListTensors(grpc::ServerContext*, const v1::ListTensorsRequest*,
                           v1::ListTensorsResponse* response) override {
    return Get(list_)(*response);
  }
  grpc::Status ReadTensor(
      grpc::ServerContext*,
      grpc::ServerReaderWriter<v1::ReadTensorResponse, v1::ReadTensorRequest>* stream) override {
    v1::ReadTensorRequest request;
    while (stream->Read(&request)) {
      if (request.has_received()) continue;
      if (grpc::Status status = Get(on_part_)(request.part(), *stream); !status.ok()) return status;
    }
    return grpc::Status::OK;
  }

 private:
  template <typename T>
  T Get(const T& behaviour) {
    MutexLock lock(&mu_);
    return behaviour;
  }

  Mutex mu_;
  /// One tensor "t" of 4 bytes.
  List list_ = [](v1::ListTensorsResponse& response) {
    v1::TensorDescription& tensor = *response.add_tensors();
    tensor.set_name("t");
    tensor.set_dtype("F32");
    tensor.add_shape(1);
    return grpc::Status::OK;
  };
  Part on_part_;
};

/// Answers every part with these bytes, whatever was asked for.
Part Answer(const std::string& data) {
  return [data](const v1::TensorPart&, auto& stream) {
    v1::ReadTensorResponse response;
    response.set_data(data);
    stream.Write(response);
    return grpc::Status::OK;
  };
}

class RemoteTensorSourceTest : public ::testing::Test {
 protected:
  RemoteTensorSource::Options Options(std::shared_ptr<grpc::Channel> channel,
                                      uint64_t fingerprint = kFingerprint) {
    RemoteTensorSource::Options options;
    options.coordinator = std::move(channel);
    options.fingerprint = fingerprint;
    options.connect_timeout = kLong;
    options.share = &take_share_;
    return options;
  }
  absl::StatusOr<std::unique_ptr<RemoteTensorSource>> Connect(const Serving& serving,
                                                              uint64_t fingerprint = kFingerprint,
                                                              std::stop_token stop = {}) {
    RemoteTensorSource::Options options = Options(serving.channel(), fingerprint);
    options.stop = std::move(stop);
    return RemoteTensorSource::Connect(std::move(options));
  }

  ServingShare give_share_{NoSteps()};
  ServingShare take_share_{NoSteps()};
};

TEST_F(RemoteTensorSourceTest, GivesEveryTensorOfTheCoordinatorsCheckpoint) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  ModelFilesService service(checkpoint.get(), &give_share_);
  const Serving serving(&service);
  const auto source = Connect(serving, checkpoint->fingerprint());
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->Find("nosuch"), nullptr);
  for (const std::string& name : checkpoint->TensorNames()) {
    const TensorInfo& info = *checkpoint->Find(name);
    const TensorInfo* const found = (*source)->Find(name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->dtype, info.dtype) << name;
    EXPECT_EQ(found->shape, info.shape) << name;
    std::vector<std::byte> expected(static_cast<size_t>(info.num_bytes()));
    std::vector<std::byte> bytes(expected.size());
    ASSERT_TRUE(checkpoint->Read(name, absl::MakeSpan(expected)).ok());
    ASSERT_TRUE((*source)->Read(name, absl::MakeSpan(bytes)).ok());
    EXPECT_TRUE(bytes == expected) << name;
  }
}

TEST_F(RemoteTensorSourceTest, PartsComeTogetherInOrderHoweverOftenItIsToldToWait) {
  FakeModelFiles service;
  const Serving serving(&service);
  const auto source = Connect(serving);
  ASSERT_TRUE(source.ok()) << source.status();
  std::string tensor;
  for (int64_t i = 0; i < 2 * kPartBytes + 10; ++i) tensor += static_cast<char>(i * 7 + i / 1000);
  std::atomic<int> asked = 0;
  service.set_on_part([&](const v1::TensorPart& part, auto& stream) {
    v1::ReadTensorResponse response;
    if (++asked % 3 != 0) {
      response.set_wait_us(1);
    } else {
      response.set_data(tensor.substr(part.offset(), part.size()));
    }
    stream.Write(response);
    return grpc::Status::OK;
  });
  std::string bytes(tensor.size() - 5, ' ');
  ASSERT_TRUE(
      (*source)
          ->ReadPart("t", 5,
                     absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), bytes.size()))
          .ok());
  EXPECT_TRUE(bytes == tensor.substr(5));
  EXPECT_EQ(asked, 9) << "each of three parts thrice";
}

TEST_F(RemoteTensorSourceTest, TensorsAndFilesHaveOneShareOfAServingCoordinator) {
  const std::unique_ptr<Checkpoint> checkpoint =
      MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
  // Time stands still but for one leap.
  SimulatedClock clock;
  std::atomic<int> looks_until_rested = 1000;
  ServingShare::Options options = NoSteps();
  options.clock = &clock;
  options.steps_run = [&] {
    if (--looks_until_rested == 0) clock.Advance(ServingShare::kLongestRest);
    return true;
  };
  ServingShare share(options);
  ModelFilesService service(checkpoint.get(), &share);
  const Serving serving(&service);
  const auto source = Connect(serving, checkpoint->fingerprint());
  ASSERT_TRUE(source.ok()) << source.status();
  const auto stub = v1::ModelFiles::NewStub(serving.channel());
  v1::ReadTensorRequest request;
  request.mutable_part()->set_fingerprint(checkpoint->fingerprint());
  request.mutable_part()->set_name("lm_head.weight");
  request.mutable_part()->set_size(16);
  const auto ask = [&] {
    grpc::ClientContext context;
    const auto stream = stub->ReadTensor(&context);
    v1::ReadTensorResponse response;
    EXPECT_TRUE(stream->Write(request));
    EXPECT_TRUE(stream->Read(&response));
    v1::ReadTensorRequest receipt;
    receipt.mutable_received();
    if (!response.data().empty()) stream->Write(receipt);
    stream->WritesDone();
    EXPECT_TRUE(stream->Finish().ok());
    return response;
  };
  // As if a part of a file passed.
  ASSERT_EQ(share.TryBegin(), absl::ZeroDuration());
  const v1::ReadTensorResponse refused = ask();
  EXPECT_TRUE(refused.data().empty());
  EXPECT_GT(refused.wait_us(), 0u);
  share.GiveUpTurn();
  const v1::ReadTensorResponse given = ask();
  EXPECT_EQ(given.data().size(), 16u);
  // What the tensor took is rested for.
  EXPECT_GT(share.Wait(true), absl::ZeroDuration());

  // Who is told to wait gets all in the end.
  looks_until_rested = 2;
  std::vector<std::byte> bytes(static_cast<size_t>(kPartBytes / 64));
  EXPECT_TRUE((*source)->ReadPart("lm_head.weight", 0, absl::MakeSpan(bytes)).ok());
  EXPECT_EQ(looks_until_rested, 0) << "it was told once";
}

TEST_F(RemoteTensorSourceTest, ACoordinatorThatHangsIsDeadlineExceeded) {
  FakeModelFiles service;
  BoundedQueue<int> release(1);
  service.set_on_part([&](const v1::TensorPart&, auto&) {
    release.Pop();
    return grpc::Status::OK;
  });
  const Serving serving(&service);
  RemoteTensorSource::Options options = Options(serving.channel());
  options.part_timeout = absl::Milliseconds(50);
  const auto source = RemoteTensorSource::Connect(std::move(options));
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<std::byte> bytes(4);
  EXPECT_EQ((*source)->Read("t", absl::MakeSpan(bytes)).code(),
            absl::StatusCode::kDeadlineExceeded);
  release.Close();
}

TEST_F(RemoteTensorSourceTest, ACoordinatorThatDoesNotEndACallKeepsNobodyWaiting) {
  FakeModelFiles service;
  BoundedQueue<int> release(1);
  service.set_on_part([&](const v1::TensorPart& part, auto& stream) {
    const grpc::Status status = Answer("1234")(part, stream);
    release.Pop();
    return status;
  });
  const Serving serving(&service);
  RemoteTensorSource::Options options = Options(serving.channel());
  options.part_timeout = absl::Seconds(2);  // in which it does answer
  const auto source = RemoteTensorSource::Connect(std::move(options));
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<std::byte> bytes(4);
  EXPECT_TRUE((*source)->Read("t", absl::MakeSpan(bytes)).ok()) << "it has given all";
  release.Close();
}

TEST_F(RemoteTensorSourceTest, WhatTheCoordinatorCancelsIsUnavailable) {
  FakeModelFiles service;
  service.set_on_part([](const v1::TensorPart&, auto&) {
    return grpc::Status(grpc::StatusCode::CANCELLED, "it is shutting down");
  });
  const Serving serving(&service);
  const auto source = Connect(serving);
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<std::byte> bytes(4);
  const absl::Status status = (*source)->Read("t", absl::MakeSpan(bytes));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("it is shutting down"));
}

TEST_F(RemoteTensorSourceTest, AnotherModelIsAborted) {
  const std::unique_ptr<Checkpoint> checkpoint =
      MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
  ModelFilesService service(checkpoint.get(), &give_share_);
  const Serving serving(&service);
  const absl::Status status = Connect(serving, checkpoint->fingerprint() + 1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another model"));
}

TEST_F(RemoteTensorSourceTest, DescriptionsThatCannotBeAreRefusedByName) {
  FakeModelFiles service;
  const Serving serving(&service);
  const auto describe = [&](const std::string& dtype, const std::vector<uint64_t>& shape) {
    service.set_list([=](v1::ListTensorsResponse& response) {
      v1::TensorDescription& tensor = *response.add_tensors();
      tensor.set_name("odd");
      tensor.set_dtype(dtype);
      for (const uint64_t dim : shape) tensor.add_shape(dim);
      return grpc::Status::OK;
    });
    return Connect(serving).status();
  };
  EXPECT_TRUE(describe("F32", {2, 3}).ok());
  for (const absl::Status& status :
       {describe("F31", {1}), describe("F32", {0}), describe("F32", {uint64_t{1} << 63}),
        describe("F32", {1 << 30, 1 << 30})}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("tensor odd"));
  }
}

TEST_F(RemoteTensorSourceTest, TooFewOrTooManyBytesAreDataLoss) {
  FakeModelFiles service;
  const Serving serving(&service);
  const auto source = Connect(serving);
  ASSERT_TRUE(source.ok()) << source.status();
  for (const size_t sent : {0u, 3u, 5u}) {
    service.set_on_part(Answer(std::string(sent, 'x')));
    std::vector<std::byte> bytes(4);
    EXPECT_EQ((*source)->Read("t", absl::MakeSpan(bytes)).code(), absl::StatusCode::kDataLoss)
        << sent;
  }
}

TEST_F(RemoteTensorSourceTest, NobodyThereIsUnavailable) {
  std::string address;
  {
    FakeModelFiles service;
    address = Serving(&service).address();  // Nobody's from now on.
  }
  EXPECT_EQ(RemoteTensorSource::Connect(Options(MakeGrpcChannel(address))).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(RemoteTensorSourceTest, AStopEndsACallThatWaits) {
  FakeModelFiles service;
  BoundedQueue<int> entered(1);
  BoundedQueue<int> release(1);
  const auto wait = [&] {
    entered.Push(0);
    release.Pop();
    return grpc::Status::OK;
  };
  const Serving serving(&service);

  std::stop_source stop_reading;
  const auto source = Connect(serving, kFingerprint, stop_reading.get_token());
  ASSERT_TRUE(source.ok()) << source.status();
  service.set_on_part([&](const v1::TensorPart&, auto&) { return wait(); });
  absl::Status status;
  std::thread reader([&] {
    std::vector<std::byte> bytes(4);
    status = (*source)->Read("t", absl::MakeSpan(bytes));
  });
  entered.Pop();
  stop_reading.request_stop();
  reader.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);

  std::stop_source stop_connecting;
  service.set_list([&](v1::ListTensorsResponse&) { return wait(); });
  std::thread connecting(
      [&] { status = Connect(serving, kFingerprint, stop_connecting.get_token()).status(); });
  entered.Pop();
  stop_connecting.request_stop();
  connecting.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  release.Close();
}

}  // namespace
}  // namespace caravan
