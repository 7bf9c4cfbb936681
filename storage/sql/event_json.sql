-- One event in the API's words. Times in UTC.
json_build_object(
    'eventId', event_id,
    'eventType', event_type,
    'projectId', project_id,
    'userId', user_id,
    'anonymousId', anonymous_id,
    'sessionId', session_id,
    'siteId', site_id,
    'timestamp', to_char("timestamp" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'receivedAt', to_char(received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'createdAt', to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    'properties', properties,
    'context', context
)::text
