#include "cluster/grpc_transport.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>

#include "grpcpp/support/server_interceptor.h"
#endif

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cluster/connection_doubt.h"
#include "cluster/handshake_log.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace caravan {
namespace {

// Between tries to connect, from the first on and at most.
constexpr absl::Duration kFirstRetry = absl::Milliseconds(100);
constexpr absl::Duration kLastRetry = absl::Seconds(1);

// For so long at most a wait does not heed a stop request.
constexpr absl::Duration kStopCheckInterval = absl::Milliseconds(100);

// Without a connection for so long, it is asked why; and again after the longer time.
constexpr absl::Duration kFirstDoubt = absl::Milliseconds(500);
constexpr absl::Duration kNextDoubt = absl::Seconds(5);
constexpr absl::Duration kDoubtTimeout = absl::Seconds(2);

// A certificate that is refused is tried for so long, as both ends may be about to see new files.
constexpr absl::Duration kExchange = absl::Milliseconds(2500);

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(absl::ToInt64Milliseconds(duration));
}

#if defined(__SANITIZE_THREAD__)

// ThreadSanitizer does not see the locks by which Shutdown waits for handlers: tell it.
char handlers_ended;

/// Lives as long as a call on the server's side.
class ServedCall : public grpc::experimental::Interceptor {
 public:
  ~ServedCall() override { __tsan_release(&handlers_ended); }
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    methods->Proceed();
  }
};

class ServedCallFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* /*call*/) override {
    return new ServedCall;
  }
};

void WatchHandlers(grpc::ServerBuilder& builder) {
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> factories;
  factories.push_back(std::make_unique<ServedCallFactory>());
  builder.experimental().SetInterceptorCreators(std::move(factories));
}

void SeeHandlersEnd() { __tsan_acquire(&handlers_ended); }

#else

void WatchHandlers(grpc::ServerBuilder& /*builder*/) {}
void SeeHandlersEnd() {}

#endif

}  // namespace

std::shared_ptr<grpc::Channel> MakeGrpcChannel(const std::string& address,
                                               const ChannelOptions& options) {
  const ClusterTls* const tls = options.security.tls.get();
  return MakeGrpcChannel(address,
                         tls == nullptr ? grpc::InsecureChannelCredentials()
                                        : tls->ForChannel(options.peer, options.any_peer),
                         options.max_receive_bytes);
}

std::shared_ptr<grpc::Channel> MakeGrpcChannel(
    const std::string& address, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
    int max_receive_bytes) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(kMaxStepBytes);
  arguments.SetMaxReceiveMessageSize(max_receive_bytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(kKeepaliveInterval));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(kKeepaliveTimeout));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // no limit: an idle pipeline is fine
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // A repeated step would be a second one; besides, retries keep copies of what was sent.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // Whoever waits for a coordinator that comes back is there within about a second of it.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, Milliseconds(kFirstRetry));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, Milliseconds(kLastRetry));
  // Otherwise two channels to one address share a connection, and so its flow control and its end.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

void ConfigureGrpcServer(grpc::ServerBuilder& builder) {
  builder.SetMaxSendMessageSize(kMaxStepBytes);
  builder.SetMaxReceiveMessageSize(kMaxStepBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(kKeepaliveInterval));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(kKeepaliveTimeout));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // By default a server hangs up on a client that pings more often than every five minutes.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             Milliseconds(kKeepaliveInterval / 2));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  // A second server on the same port must fail to start, not take half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  WatchHandlers(builder);
}

absl::StatusOr<GrpcServer> StartGrpcServer(const std::string& address,
                                           const std::vector<grpc::Service*>& services,
                                           const TransportSecurity& security) {
  CARAVAN_RETURN_IF_ERROR(CheckListen(address, security));
  if (security.tls != nullptr) LogFailedHandshakes();
  grpc::ServerBuilder builder;
  ConfigureGrpcServer(builder);
  GrpcServer started;
  builder.AddListeningPort(address,
                           security.tls == nullptr ? grpc::InsecureServerCredentials()
                                                   : security.tls->ForServer(security.knows_token),
                           &started.port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  started.server = builder.BuildAndStart();
  if (started.server == nullptr || started.port == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot listen on ", address, ": the address is in use or not this machine's"));
  }
  return started;
}

absl::Status WaitForConnection(grpc::Channel& channel, const std::string& address,
                               const TransportSecurity& security, absl::Duration timeout,
                               const std::stop_token& stop) {
  const absl::Time begin = absl::Now();
  const absl::Time deadline = begin + timeout;
  absl::Time next_doubt = begin + kFirstDoubt;
  bool refused = false;  // so the last doubt said
  while (!stop.stop_requested()) {
    const absl::Time until = std::min(deadline, absl::Now() + kStopCheckInterval);
    if (channel.WaitForConnected(absl::ToChronoTime(until))) return absl::OkStatus();
    if (absl::Now() >= next_doubt) {
      const absl::Status why = ExplainNoConnection(address, security, kDoubtTimeout);
      const bool may_pass = why.ok() || (absl::IsUnauthenticated(why) && !refused);
      if (!may_pass) return Annotate(why, absl::StrCat("coordinator ", address));
      refused = !why.ok();
      next_doubt = absl::Now() + (refused ? kExchange : kNextDoubt);
    }
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat("no coordinator answers at ", address,
                                                      " within ", absl::FormatDuration(timeout)));
    }
  }
  return absl::CancelledError(absl::StrCat("stopped before a coordinator answered at ", address));
}

void ShutDownGrpcServer(grpc::Server& server, absl::Duration grace) {
  server.Shutdown(absl::ToChronoTime(absl::Now() + grace));
  SeeHandlersEnd();
}

}  // namespace caravan
