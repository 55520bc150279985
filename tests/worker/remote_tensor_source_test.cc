// A worker's view of the coordinator's checkpoint, through the real service.

#include "worker/remote_tensor_source.h"

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/bounded_queue.h"
#include "base/mutex.h"
#include "cluster/grpc_transport.h"
#include "coordinator/model_files_service.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/golden.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Hours(1);  // what ends before does so of itself
constexpr uint64_t kFingerprint = 5;

/// A service on a port that the system chose.
class Serving {
 public:
  explicit Serving(grpc::Service* service) {
    absl::StatusOr<GrpcServer> started = StartGrpcServer("127.0.0.1:0", {service});
    CARAVAN_CHECK(started.ok());
    server_ = *std::move(started);
  }
  ~Serving() { ShutDownGrpcServer(*server_.server, absl::ZeroDuration()); }
  std::string address() const { return absl::StrCat("127.0.0.1:", server_.port); }
  std::shared_ptr<grpc::Channel> channel() const { return MakeGrpcChannel(address()); }

 private:
  GrpcServer server_;
};

/// Does what the test says, which may change between calls.
class FakeModelFiles final : public v1::ModelFiles::Service {
 public:
  using List = std::function<grpc::Status(v1::ListTensorsResponse&)>;
  using Read = std::function<grpc::Status(grpc::ServerWriter<v1::ReadTensorResponse>&)>;

  void set_list(List list) {
    MutexLock lock(&mu_);
    list_ = std::move(list);
  }
  void set_read(Read read) {
    MutexLock lock(&mu_);
    read_ = std::move(read);
  }

  grpc::Status ListTensors(grpc::ServerContext*, const v1::ListTensorsRequest*,
                           v1::ListTensorsResponse* response) override {
    return Get(list_)(*response);
  }
  grpc::Status ReadTensor(grpc::ServerContext*, const v1::ReadTensorRequest*,
                          grpc::ServerWriter<v1::ReadTensorResponse>* writer) override {
    return Get(read_)(*writer);
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
  Read read_;
};

TEST(RemoteTensorSourceTest, GivesEveryTensorOfTheCoordinatorsCheckpoint) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  ModelFilesService service(checkpoint.get());
  const Serving serving(&service);
  const auto source =
      RemoteTensorSource::Connect(serving.channel(), checkpoint->fingerprint(), kLong, {});
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

TEST(RemoteTensorSourceTest, PiecesComeTogetherInOrder) {
  FakeModelFiles service;
  const Serving serving(&service);
  const auto source = RemoteTensorSource::Connect(serving.channel(), kFingerprint, kLong, {});
  ASSERT_TRUE(source.ok()) << source.status();
  service.set_read([](grpc::ServerWriter<v1::ReadTensorResponse>& writer) {
    for (const char* data : {"a", "", "bcd"}) {
      v1::ReadTensorResponse piece;
      piece.set_data(data);
      writer.Write(piece);
    }
    return grpc::Status::OK;
  });
  std::string bytes(4, ' ');
  ASSERT_TRUE(
      (*source)->Read("t", absl::MakeSpan(reinterpret_cast<std::byte*>(bytes.data()), 4)).ok());
  EXPECT_EQ(bytes, "abcd");
}

TEST(RemoteTensorSourceTest, AnotherModelIsAborted) {
  const std::unique_ptr<Checkpoint> checkpoint =
      MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
  ModelFilesService service(checkpoint.get());
  const Serving serving(&service);
  const absl::Status status =
      RemoteTensorSource::Connect(serving.channel(), checkpoint->fingerprint() + 1, kLong, {})
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("another model"));
}

TEST(RemoteTensorSourceTest, DescriptionsThatCannotBeAreRefusedByName) {
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
    return RemoteTensorSource::Connect(serving.channel(), kFingerprint, kLong, {}).status();
  };
  EXPECT_TRUE(describe("F32", {2, 3}).ok());
  for (const absl::Status& status :
       {describe("F31", {1}), describe("F32", {0}), describe("F32", {uint64_t{1} << 63}),
        describe("F32", {1 << 30, 1 << 30})}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("tensor odd"));
  }
}

TEST(RemoteTensorSourceTest, TooFewOrTooManyBytesAreDataLoss) {
  FakeModelFiles service;
  const Serving serving(&service);
  const auto source = RemoteTensorSource::Connect(serving.channel(), kFingerprint, kLong, {});
  ASSERT_TRUE(source.ok()) << source.status();
  for (const size_t sent : {3u, 5u}) {
    service.set_read([sent](grpc::ServerWriter<v1::ReadTensorResponse>& writer) {
      v1::ReadTensorResponse piece;
      piece.set_data(std::string(sent, 'x'));
      writer.Write(piece);
      return grpc::Status::OK;
    });
    std::vector<std::byte> bytes(4);
    EXPECT_EQ((*source)->Read("t", absl::MakeSpan(bytes)).code(), absl::StatusCode::kDataLoss)
        << sent;
  }
}

TEST(RemoteTensorSourceTest, NobodyThereIsUnavailable) {
  std::string address;
  {
    FakeModelFiles service;
    address = Serving(&service).address();  // Nobody's from now on.
  }
  EXPECT_EQ(RemoteTensorSource::Connect(MakeGrpcChannel(address), kFingerprint, kLong, {})
                .status()
                .code(),
            absl::StatusCode::kUnavailable);
}

TEST(RemoteTensorSourceTest, AStopEndsACallThatWaits) {
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
  const auto source =
      RemoteTensorSource::Connect(serving.channel(), kFingerprint, kLong, stop_reading.get_token());
  ASSERT_TRUE(source.ok()) << source.status();
  service.set_read([&](grpc::ServerWriter<v1::ReadTensorResponse>&) { return wait(); });
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
  std::thread connecting([&] {
    status = RemoteTensorSource::Connect(serving.channel(), kFingerprint, kLong,
                                         stop_connecting.get_token())
                 .status();
  });
  entered.Pop();
  stop_connecting.request_stop();
  connecting.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  release.Close();
}

}  // namespace
}  // namespace caravan
